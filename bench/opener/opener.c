/*
 * A process of a container: it opens a file, so that whoever watches knows it, says
 * "ready", waits for the end of its standard input, and opens and closes the file a
 * number of times. In C, so that nothing but
 * the opens is measured: hundreds of Go runtimes would be work of their own.
 *
 * usage: opener FILE TIMES
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int visit(const char *file)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		perror(file);
		return -1;
	}
	return close(fd);
}

int main(int argc, char **argv)
{
	char byte;
	if (argc != 3 || visit(argv[1]))
		return 2;
	if (write(1, "ready\n", 6) != 6 || read(0, &byte, 1) != 0)
		return 2;
	for (long left = atol(argv[2]); left > 0; left--)
		if (visit(argv[1]))
			return 1;
	return 0;
}
