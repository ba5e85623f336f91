/*
 * Opens every file of a list for writing, once, and closes it again. Prints for
 * each the microseconds of the open: of breaking the agent's lease on it, if there
 * is one, and of the copy-up.
 *
 * usage: writer LIST       (a file with one path a line)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
	FILE *list = argc == 2 ? fopen(argv[1], "re") : NULL;
	char *line = NULL;
	size_t size = 0;
	if (!list) {
		fprintf(stderr, "usage: writer LIST\n");
		return 2;
	}
	while (getline(&line, &size, list) > 0) {
		line[strcspn(line, "\n")] = 0;
		double began = now();
		int fd = open(line, O_WRONLY | O_CLOEXEC);
		double took = now() - began;
		if (fd < 0) {
			perror(line);
			return 1;
		}
		close(fd);
		printf("%.3f\n", took);
	}
	return 0;
}
