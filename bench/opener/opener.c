/*
 * A process of a container: it says "ready", waits for the end of its standard
 * input, and opens and closes a file a number of times. In C, so that nothing but
 * the opens is measured: hundreds of Go runtimes would be work of their own.
 *
 * usage: opener FILE TIMES
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char byte;
	if (argc != 3 || write(1, "ready\n", 6) != 6 || read(0, &byte, 1) != 0)
		return 2;
	for (long left = atol(argv[2]); left > 0; left--) {
		int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
		if (fd < 0) {
			perror(argv[1]);
			return 1;
		}
		close(fd);
	}
	return 0;
}
