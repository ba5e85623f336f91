/*
 * The floor: a fanotify listener that does nothing but allow, built the best way
 * that docs/kernel.md knows: a group per mount, one pinned reader per CPU, each
 * with an epoll over all groups. It prints "ready" and runs until it is killed.
 *
 * usage: floor MOUNTPOINT...
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <unistd.h>

static int *group;
static int groups;

static void *reader(void *arg)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((long)arg, &set);
	sched_setaffinity(0, sizeof(set), &set);
	int ep = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < groups; i++) {
		struct epoll_event e = { .events = EPOLLIN, .data.u32 = i };
		epoll_ctl(ep, EPOLL_CTL_ADD, group[i], &e);
	}
	for (;;) {
		struct epoll_event ready[64];
		int n = epoll_wait(ep, ready, 64, -1);
		for (int i = 0; i < n; i++) {
			int g = group[ready[i].data.u32];
			char buf[4 * FAN_EVENT_METADATA_LEN];
			ssize_t len = read(g, buf, sizeof(buf));
			if (len <= 0)
				continue;
			struct fanotify_event_metadata *m = (void *)buf;
			for (; FAN_EVENT_OK(m, len); m = FAN_EVENT_NEXT(m, len)) {
				struct fanotify_response r = { .fd = m->fd, .response = FAN_ALLOW };
				if (write(g, &r, sizeof(r)) != sizeof(r))
					perror("respond");
				close(m->fd);
			}
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	groups = argc - 1;
	group = calloc(groups + 1, sizeof(*group));
	for (int i = 0; i < groups; i++) {
		group[i] = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK |
						 FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS,
					 O_RDONLY | O_LARGEFILE | O_CLOEXEC);
		if (group[i] < 0 ||
		    fanotify_mark(group[i], FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN_PERM,
				  AT_FDCWD, argv[i + 1])) {
			perror(argv[i + 1]);
			return 1;
		}
	}
	cpu_set_t allowed;
	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (long cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		pthread_t t;
		if (CPU_ISSET(cpu, &allowed))
			pthread_create(&t, NULL, reader, (void *)cpu);
	}
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}
