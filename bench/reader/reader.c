/*
 * Opens, reads and closes every file of a list, over and over, in several
 * processes that share the list between them. Prints for each pass the
 * microseconds per file: the time from the first open to the last close of all
 * processes, divided by the number of files.
 *
 * usage: reader open|read LIST PASSES STREAMS
 *        open: opens and closes only; LIST: a file with one path a line
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct shared {
	pthread_barrier_t begin, end;
	volatile int failed;
} *shared;

static char **files;
static int count, reads;

static void load(const char *list)
{
	FILE *f = fopen(list, "re");
	char *line = NULL;
	size_t size = 0;
	if (!f) {
		perror(list);
		exit(1);
	}
	while (getline(&line, &size, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		files = realloc(files, (count + 1) * sizeof(*files));
		files[count++] = strdup(line);
	}
	fclose(f);
}

static int visit(const char *file)
{
	static char buf[128 << 10];
	ssize_t n = 0;
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (reads)
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			;
	close(fd);
	return n < 0 ? -1 : 0;
}

static void stream(int first, int step, int passes)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int p = 0; p < passes; p++) {
		pthread_barrier_wait(&shared->begin);
		for (int i = first; i < count && !shared->failed; i += step)
			if (visit(files[i])) {
				perror(files[i]);
				shared->failed = 1;
			}
		pthread_barrier_wait(&shared->end);
	}
	_exit(0);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: reader open|read LIST PASSES STREAMS\n");
		return 2;
	}
	reads = !strcmp(argv[1], "read");
	load(argv[2]);
	int passes = atoi(argv[3]), streams = atoi(argv[4]);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || !count || passes < 1 || streams < 1)
		return 2;
	pthread_barrierattr_t attr;
	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->begin, &attr, streams + 1);
	pthread_barrier_init(&shared->end, &attr, streams + 1);
	for (int i = 0; i < streams; i++) {
		pid_t pid = fork();
		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (!pid)
			stream(i, streams, passes);
	}
	for (int p = 0; p < passes && !shared->failed; p++) {
		double began = now();
		pthread_barrier_wait(&shared->begin);
		pthread_barrier_wait(&shared->end);
		if (!shared->failed)
			printf("%.3f\n", (now() - began) / count);
	}
	return shared->failed;
}
