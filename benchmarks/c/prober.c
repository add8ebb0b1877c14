/* A bare prober: the least that a collector in C must do with the same socket options.
 *
 * --sockets source ports probe --targets addresses (127.1.0.1 and up) at --rate probes/s over all, in
 * bursts of at most 32 on a timer, each from one socket. TOS goes with every message, T1 is the
 * kernel's transmit stamp, T4 its receive stamp; both are read before every burst, unless --drain-us
 * says less often. The bookkeeping is two counters and a sum: no flows, no histograms, no timeouts.
 *
 * After --warmup seconds the measured --seconds begin; over these, and these only, probes, replies
 * and its own CPU time are counted. Prints one JSON object.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#define MOST_SOCKETS 64
#define BURST 32
#define BATCH 256
#define ROOM 256
#define CONTROL 256
#define GRACE (3 * SECOND / 10)
#define REMEMBERED 65536 /* transmit stamps kept for each socket */
#define STAMPS                                                                                       \
	(SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |   \
	 SOF_TIMESTAMPING_OPT_ID | SOF_TIMESTAMPING_OPT_TSONLY)

struct out_control {
	char tos[CMSG_SPACE(sizeof(int))];
} __attribute__((aligned(8)));

struct source {
	int fd;
	uint32_t sequence;
	int target; /* whose turn it is */
	uint64_t *sent_at;
};

static struct source sources[MOST_SOCKETS];
static uint8_t out[BURST][STAMP_SIZE], in[BATCH][ROOM];
static char control_in[BATCH][CONTROL] __attribute__((aligned(8)));
static struct out_control control_out;
static struct sockaddr_in to[BURST], from[BATCH];
static struct iovec out_vectors[BURST], in_vectors[BATCH];
static struct mmsghdr out_messages[BURST], in_messages[BATCH];
static int count = 4, targets = 100, port;
static uint64_t sent, failed, received, stamped, unstamped, wrong;
static int64_t rtt_sum;

static int receive(int fd, int flags)
{
	for (int i = 0; i < BATCH; i++) {
		struct msghdr *m = &in_messages[i].msg_hdr;
		m->msg_namelen = sizeof from[i];
		m->msg_controllen = CONTROL;
	}
	return recvmmsg(fd, in_messages, BATCH, flags | MSG_DONTWAIT, NULL);
}

static void drain_stamps(struct source *s)
{
	int n;
	do {
		n = receive(s->fd, MSG_ERRQUEUE);
		for (int i = 0; i < n; i++) {
			struct msghdr *m = &in_messages[i].msg_hdr;
			uint64_t stamp = 0;
			uint32_t id = 0;
			for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
				if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPING) {
					struct timespec *t = (struct timespec *)CMSG_DATA(c);
					stamp = (uint64_t)t->tv_sec * SECOND + (uint64_t)t->tv_nsec;
				} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) {
					id = ((struct sock_extended_err *)CMSG_DATA(c))->ee_data;
				}
			}
			s->sent_at[id % REMEMBERED] = stamp;
			stamped++;
		}
	} while (n == BATCH);
}

static void drain_replies(struct source *s)
{
	int n;
	do {
		n = receive(s->fd, 0);
		for (int i = 0; i < n; i++) {
			struct msghdr *m = &in_messages[i].msg_hdr;
			uint8_t *p = in[i];
			uint64_t t4 = 0;
			for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
				if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPING) {
					struct timespec *t = (struct timespec *)CMSG_DATA(c);
					t4 = (uint64_t)t->tv_sec * SECOND + (uint64_t)t->tv_nsec;
				}
			}
			uint32_t sequence = get32(p + STAMP_ECHO_SEQUENCE);
			if (in_messages[i].msg_len < STAMP_SIZE || s->sequence - sequence > REMEMBERED) {
				wrong++;
				continue;
			}
			uint64_t t1 = s->sent_at[sequence % REMEMBERED];
			received++;
			if (!t1) {
				unstamped++;
				continue;
			}
			s->sent_at[sequence % REMEMBERED] = 0;
			rtt_sum += (int64_t)(t4 - t1) - (int64_t)(ns_from_ntp(get64(p + STAMP_TIME)) -
								  ns_from_ntp(get64(p + STAMP_RECEIVED)));
		}
	} while (n == BATCH);
}

static void send_probes(struct source *s, int n)
{
	uint64_t now = ntp_now();
	for (int i = 0; i < n; i++) {
		put32(out[i] + STAMP_SEQUENCE, s->sequence + (uint32_t)i);
		put64(out[i] + STAMP_TIME, now);
		put16(out[i] + STAMP_SSID, (uint16_t)(s - sources + 1));
		to[i].sin_addr.s_addr = htonl(0x7f010001U + (uint32_t)s->target);
		s->target = s->target + 1 == targets ? 0 : s->target + 1;
	}
	int done = sendmmsg(s->fd, out_messages, (unsigned)n, MSG_DONTWAIT);
	if (done < n)
		failed += (uint64_t)(n - (done < 0 ? 0 : done));
	if (done > 0) {
		s->sequence += (uint32_t)done;
		sent += (uint64_t)done;
	}
}

static void prepare(int tos, int buffer)
{
	struct cmsghdr *c = (struct cmsghdr *)control_out.tos;
	*c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TOS};
	memcpy(CMSG_DATA(c), &tos, sizeof tos);
	for (int i = 0; i < count; i++) {
		int fd = bound_socket(address("0.0.0.0", 0));
		set_buffers(fd, buffer);
		set_measuring(fd, STAMPS);
		set_int(fd, IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR");
		sources[i].fd = fd;
		sources[i].target = i * targets / count;
		sources[i].sent_at = calloc(REMEMBERED, sizeof(uint64_t));
		if (!sources[i].sent_at)
			fail("calloc");
	}
	for (int i = 0; i < BURST; i++) {
		to[i] = address("127.0.0.1", port);
		put16(out[i] + STAMP_ERROR, STAMP_SYNCHRONISED);
		out_vectors[i] = (struct iovec){out[i], STAMP_SIZE};
		out_messages[i].msg_hdr = (struct msghdr){
			.msg_name = &to[i], .msg_namelen = sizeof to[i], .msg_iov = &out_vectors[i],
			.msg_iovlen = 1, .msg_control = &control_out, .msg_controllen = sizeof control_out};
	}
	for (int i = 0; i < BATCH; i++) {
		in_vectors[i] = (struct iovec){in[i], ROOM};
		in_messages[i].msg_hdr = (struct msghdr){
			.msg_name = &from[i], .msg_iov = &in_vectors[i], .msg_iovlen = 1,
			.msg_control = control_in[i]};
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"port", 1, 0, 'p'},    {"rate", 1, 0, 'r'},   {"targets", 1, 0, 'm'}, {"sockets", 1, 0, 'n'},
		{"warmup", 1, 0, 'u'},  {"seconds", 1, 0, 's'}, {"tos", 1, 0, 't'},     {"buffer", 1, 0, 'b'},
		{"drain-us", 1, 0, 'd'}, {0}};
	double rate = 1000, warmup = 0.3, seconds = 1;
	int tos = 0, buffer = 4 << 20, turn = 0, o;
	uint64_t drain_ns = 0;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 'p': port = atoi(optarg); break;
		case 'r': rate = atof(optarg); break;
		case 'm': targets = atoi(optarg); break;
		case 'n': count = atoi(optarg); break;
		case 'u': warmup = atof(optarg); break;
		case 's': seconds = atof(optarg); break;
		case 't': tos = atoi(optarg); break;
		case 'b': buffer = atoi(optarg); break;
		case 'd': drain_ns = (uint64_t)atol(optarg) * 1000; break;
		default: return 2;
		}
	}
	if (count < 1 || count > MOST_SOCKETS || targets < 1 || rate <= 0) {
		fprintf(stderr, "--sockets takes 1 to %d, --targets and --rate more than 0\n", MOST_SOCKETS);
		return 2;
	}
	prepare(tos, buffer);

	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), poll = epoll_create1(0);
	long tick = (long)(BURST * SECOND / rate);
	if (tick > 10000000)
		tick = 10000000;
	struct itimerspec every = {{0, tick}, {0, tick}};
	struct epoll_event event = {.events = EPOLLIN};
	if (timer < 0 || poll < 0 || timerfd_settime(timer, 0, &every, NULL) ||
	    epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event))
		fail("timerfd");

	uint64_t begin = clock_ns(CLOCK_MONOTONIC), now = begin, measured_from = 0, drained = begin;
	uint64_t measure = begin + (uint64_t)(warmup * SECOND);
	uint64_t end = measure + (uint64_t)(seconds * SECOND);
	uint64_t cpu = 0, first_sent = 0, first_received = 0, ticks = 0, due_at_start = 0;
	while (now < end) {
		epoll_wait(poll, &event, 1, -1);
		if (read(timer, &ticks, sizeof ticks) < 0)
			continue;
		now = clock_ns(CLOCK_MONOTONIC);
		if (now - drained >= drain_ns) {
			drained = now;
			for (int i = 0; i < count; i++) {
				drain_stamps(&sources[i]);
				drain_replies(&sources[i]);
			}
		}
		if (!measured_from && now >= measure) {
			measured_from = now;
			first_sent = sent;
			first_received = received;
			cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
		}
		uint64_t due = (uint64_t)((double)(now - begin) * rate / SECOND) - due_at_start - sent - failed;
		if (due > 4 * BURST) { /* too late for these: never caught up */
			due_at_start += due - 4 * BURST;
			due = 4 * BURST;
		}
		for (; due; due -= due < BURST ? due : BURST) {
			send_probes(&sources[turn], due < BURST ? (int)due : BURST);
			turn = (turn + 1) % count;
		}
	}
	cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	double took = (double)(now - measured_from) / SECOND;
	uint64_t window_sent = sent - first_sent, window_received = received - first_received;
	for (uint64_t until = now + GRACE; now < until && received < sent; now = clock_ns(CLOCK_MONOTONIC)) {
		for (int i = 0; i < count; i++) {
			drain_stamps(&sources[i]);
			drain_replies(&sources[i]);
		}
	}
	uint64_t samples = received - unstamped;
	printf("{\"seconds\": %.6f, \"sent\": %lu, \"received\": %lu, \"cpu_ns\": %lu, \"total_sent\": %lu, "
	       "\"total_received\": %lu, \"stamped\": %lu, \"unstamped\": %lu, \"skipped\": %lu, "
	       "\"failed\": %lu, \"wrong\": %lu, \"rtt_mean_ns\": %.0f}\n",
	       took, window_sent, window_received, cpu, sent, received, stamped, unstamped, due_at_start,
	       failed, wrong, samples ? (double)rtt_sum / (double)samples : 0.0);
	return 0;
}
