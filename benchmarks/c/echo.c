/* A STAMP-like echo: the least that a reflector in C must do with the same socket options.
 *
 * It reads up to --batch datagrams with one recvmmsg, notes T2 from the kernel's receive stamp, TTL,
 * TOS and the address that was asked, and answers with sendmmsg, --chunk replies to a freshly read
 * T3, each with its TOS and source address. No validation, no guard, one sequence for everybody.
 * --plain sets no socket option, reads no control message and echoes the octets as they came.
 *
 * Prints {"port": N} and serves until it is killed. --counters FILE holds, at any instant, two
 * 64-bit integers in host order: datagrams received and replies sent.
 */
#include "common.h"

#include <fcntl.h>
#include <sys/mman.h>

#define MOST 256       /* datagrams a batch */
#define ROOM 2048      /* octets a datagram */
#define CONTROL_IN 256 /* octets of control messages received */

struct reply_control {
	char tos[CMSG_SPACE(sizeof(int))];
	char info[CMSG_SPACE(sizeof(struct in_pktinfo))];
} __attribute__((aligned(8)));

static uint8_t packets[MOST][ROOM];
static char control_in[MOST][CONTROL_IN] __attribute__((aligned(8)));
static struct reply_control control_out[MOST];
static struct sockaddr_in peers[MOST];
static struct iovec vectors[MOST];
static struct mmsghdr messages[MOST];
static uint32_t sequence;

static void reply_controls(void)
{
	for (int i = 0; i < MOST; i++) {
		struct cmsghdr *c = (struct cmsghdr *)control_out[i].tos;
		*c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TOS};
		c = (struct cmsghdr *)control_out[i].info;
		*c = (struct cmsghdr){CMSG_LEN(sizeof(struct in_pktinfo)), IPPROTO_IP, IP_PKTINFO};
	}
}

/* Turns probe i into its reply, all but T3. */
static void reflect(int i)
{
	uint8_t *p = packets[i], ttl = 0;
	uint64_t received = 0;
	int tos = 0;
	struct in_pktinfo from = {0};
	struct msghdr *m = &messages[i].msg_hdr;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPING) {
			received = ntp_from_timespec((struct timespec *)CMSG_DATA(c));
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) {
			ttl = *CMSG_DATA(c);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			tos = *CMSG_DATA(c);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo *asked = (struct in_pktinfo *)CMSG_DATA(c);
			from.ipi_spec_dst = asked->ipi_addr;
		}
	}
	memcpy(CMSG_DATA((struct cmsghdr *)control_out[i].tos), &tos, sizeof tos);
	memcpy(CMSG_DATA((struct cmsghdr *)control_out[i].info), &from, sizeof from);
	m->msg_control = &control_out[i];
	m->msg_controllen = sizeof control_out[i];

	memcpy(p + STAMP_ECHO_SEQUENCE, p, 14); /* sequence, time, error estimate */
	memset(p + STAMP_ECHO_TTL - 2, 0, 6);
	p[STAMP_ECHO_TTL] = ttl;
	put32(p + STAMP_SEQUENCE, sequence++);
	put16(p + STAMP_ERROR, STAMP_SYNCHRONISED);
	put64(p + STAMP_RECEIVED, received);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"bind", 1, 0, 'a'},  {"port", 1, 0, 'p'},  {"batch", 1, 0, 'b'}, {"chunk", 1, 0, 'c'},
		{"plain", 0, 0, 'x'}, {"buffer", 1, 0, 'r'}, {"counters", 1, 0, 'C'}, {0}};
	const char *bind_to = "127.0.0.1", *counters_file = NULL;
	int port = 0, batch = 64, chunk = 8, plain = 0, buffer = 0, o;
	uint64_t own_counters[2] = {0}, *counters = own_counters;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 'a': bind_to = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'b': batch = atoi(optarg); break;
		case 'c': chunk = atoi(optarg); break;
		case 'x': plain = 1; break;
		case 'r': buffer = atoi(optarg); break;
		case 'C': counters_file = optarg; break;
		default: return 2;
		}
	}
	if (batch < 1 || batch > MOST || chunk < 1) {
		fprintf(stderr, "--batch takes 1 to %d, --chunk at least 1\n", MOST);
		return 2;
	}
	if (counters_file) {
		int f = open(counters_file, O_RDWR | O_CREAT, 0600);
		if (f < 0 || ftruncate(f, sizeof own_counters))
			fail(counters_file);
		counters = mmap(NULL, sizeof own_counters, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
		if (counters == MAP_FAILED)
			fail("mmap");
	}

	int fd = bound_socket(address(bind_to, port));
	set_buffers(fd, buffer);
	if (plain) {
		chunk = batch;
	} else {
		set_measuring(fd, SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
		reply_controls();
	}
	struct sockaddr_in at;
	socklen_t length = sizeof at;
	if (getsockname(fd, (struct sockaddr *)&at, &length))
		fail("getsockname");
	printf("{\"port\": %d}\n", ntohs(at.sin_port));
	fflush(stdout);

	for (int i = 0; i < MOST; i++)
		messages[i].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_iov = &vectors[i], .msg_iovlen = 1};

	for (;;) {
		for (int i = 0; i < batch; i++) {
			struct msghdr *m = &messages[i].msg_hdr;
			vectors[i] = (struct iovec){packets[i], ROOM};
			m->msg_namelen = sizeof peers[i];
			m->msg_control = plain ? NULL : control_in[i];
			m->msg_controllen = plain ? 0 : CONTROL_IN;
		}
		int n = recvmmsg(fd, messages, (unsigned)batch, MSG_WAITFORONE, NULL);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			fail("recvmmsg");
		}
		for (int i = 0; i < n; i++) {
			vectors[i].iov_len = messages[i].msg_len;
			if (!plain && messages[i].msg_len >= STAMP_SIZE)
				reflect(i);
		}
		for (int start = 0; start < n;) {
			int end = start + chunk < n ? start + chunk : n;
			if (!plain) {
				uint64_t now = ntp_now();
				for (int i = start; i < end; i++)
					put64(packets[i] + STAMP_TIME, now);
			}
			int sent = sendmmsg(fd, messages + start, (unsigned)(end - start), 0);
			if (sent < 0) /* this one cannot be sent: go on behind it */
				sent = 1;
			else
				counters[1] += (uint64_t)sent;
			start += sent;
		}
		counters[0] += (uint64_t)n;
	}
}
