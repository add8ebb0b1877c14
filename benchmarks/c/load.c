/* A load generator: STAMP probes from many source ports, replies counted, nothing else.
 *
 * --replay FILE sends the datagrams of a file in turn instead: signed, malformed, whatever they are,
 * each a 16-bit length in network order and that many octets. What comes back is then only counted.
 *
 * --mode window  keeps --window probes outstanding over all sockets: as many a second as the
 *                reflector answers. A socket that hears nothing for 200 ms writes its window off.
 * --mode paced   sends --rate probes/s in bursts of at most 32, whatever comes back.
 * --mode single  sends --rate probes/s, one at a time, each only when the one before has come back
 *                or 200 ms have passed: the reflector wakes up for every packet.
 *
 * After --warmup seconds the measured --seconds begin; over these, and these only, probes, replies
 * and the CPU time of process --watch are counted. Then it waits up to 300 ms for stragglers, since loss is
 * counted over the whole run, and prints one JSON object.
 */
#include "common.h"

#define MOST_SOCKETS 1024
#define BATCH 64
#define BURST 32
#define PATIENCE (SECOND / 5)
#define GRACE (3 * SECOND / 10)
#define ROOM 2048
#define MOST_REPLAYED 16384

struct source {
	int fd;
	uint32_t sent, received, forgiven; /* forgiven: no longer waited for */
	uint64_t heard;
};

static struct source sources[MOST_SOCKETS];
static uint8_t out[BATCH][ROOM], in[BATCH][ROOM];
static struct iovec out_vectors[BATCH], in_vectors[BATCH];
static struct mmsghdr out_messages[BATCH], in_messages[BATCH];
static struct iovec replayed[MOST_REPLAYED];
static int count = 16, size = STAMP_SIZE, tos, replays, replay;
static uint64_t sent, received, wrong, failed, rtt_sum;

static int outstanding(const struct source *s)
{
	return (int)(s->sent - s->received - s->forgiven);
}

static void read_replays(const char *name)
{
	uint8_t length[2];
	FILE *f = fopen(name, "rb");
	if (!f)
		fail(name);
	for (; replays < MOST_REPLAYED && fread(length, 2, 1, f); replays++) {
		size_t octets = (size_t)length[0] << 8 | length[1];
		void *datagram = malloc(octets + 1);
		if (!datagram || fread(datagram, 1, octets, f) != octets)
			fail(name);
		replayed[replays] = (struct iovec){datagram, octets};
	}
	fclose(f);
	if (!replays) {
		fprintf(stderr, "%s: no datagram in it\n", name);
		exit(2);
	}
}

static void send_probes(struct source *s, int n, uint64_t now)
{
	uint64_t t1 = replays ? 0 : ntp_now();
	for (int i = 0; i < n; i++) {
		if (replays) {
			out_vectors[i] = replayed[replay];
			replay = (replay + 1) % replays;
			continue;
		}
		put32(out[i] + STAMP_SEQUENCE, s->sent + (uint32_t)i);
		put64(out[i] + STAMP_TIME, t1);
		put16(out[i] + STAMP_ERROR, STAMP_SYNCHRONISED);
		put16(out[i] + STAMP_SSID, (uint16_t)(s - sources + 1));
	}
	int done = sendmmsg(s->fd, out_messages, (unsigned)n, 0);
	if (done < 0) { /* ECONNREFUSED of an earlier one, a full buffer: that probe was not sent */
		failed++;
		return;
	}
	if (outstanding(s) == 0)
		s->heard = now;
	s->sent += (uint32_t)done;
	sent += (uint64_t)done;
}

static int receive_replies(struct source *s, uint64_t now, int flags)
{
	int n = recvmmsg(s->fd, in_messages, BATCH, flags, NULL);
	if (n <= 0)
		return 0;
	uint64_t t4 = clock_ns(CLOCK_REALTIME);
	for (int i = 0; i < n && !replays; i++) {
		uint32_t echoed = get32(in[i] + STAMP_ECHO_SEQUENCE);
		if ((int)in_messages[i].msg_len != size)
			wrong++;
		else if (get32(in[i] + 16) == 0) /* an echo that is no reflector: its own octets */
			echoed = get32(in[i] + STAMP_SEQUENCE);
		else
			rtt_sum += t4 - ns_from_ntp(get64(in[i] + STAMP_ECHO_TIME));
		if (echoed >= s->sent)
			wrong++;
	}
	s->received += (uint32_t)n;
	if (outstanding(s) < 0) /* what was given up came after all */
		s->forgiven = s->sent - s->received;
	s->heard = now;
	received += (uint64_t)n;
	return n;
}

static void receive_all(uint64_t now)
{
	for (int i = 0; i < count; i++)
		while (receive_replies(&sources[i], now, MSG_DONTWAIT) == BATCH)
			;
}

static void step_window(int window, uint64_t now)
{
	for (int i = 0; i < count; i++) {
		struct source *s = &sources[i];
		receive_replies(s, now, MSG_DONTWAIT);
		if (outstanding(s) > 0 && now - s->heard > PATIENCE)
			s->forgiven = s->sent - s->received;
		int room = window / count + (i < window % count) - outstanding(s);
		if (room > BATCH)
			room = BATCH;
		if (room > 0)
			send_probes(s, room, now);
	}
}

static void step_paced(uint64_t due, uint64_t now)
{
	static int turn;
	int burst = 0;
	while (sent + failed < due && burst < BURST) {
		int n = (int)(due - sent - failed) < 4 ? (int)(due - sent - failed) : 4;
		if (n > BURST - burst)
			n = BURST - burst;
		send_probes(&sources[turn], n, now);
		turn = (turn + 1) % count;
		burst += n;
	}
	receive_all(now);
}

static void step_single(uint64_t when)
{
	static int turn;
	struct timespec until = {(time_t)(when / SECOND), (long)(when % SECOND)};
	struct source *s = &sources[turn];
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	receive_replies(s, 0, MSG_DONTWAIT);
	s->forgiven = s->sent - s->received;
	send_probes(s, 1, 0);
	receive_replies(s, 0, MSG_WAITFORONE); /* SO_RCVTIMEO is PATIENCE */
	turn = (turn + 1) % count;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"host", 1, 0, 'h'},    {"port", 1, 0, 'p'},    {"mode", 1, 0, 'm'},  {"rate", 1, 0, 'r'},
		{"window", 1, 0, 'w'},  {"sockets", 1, 0, 'n'}, {"warmup", 1, 0, 'u'}, {"seconds", 1, 0, 's'},
		{"watch", 1, 0, 'P'},   {"size", 1, 0, 'z'},    {"tos", 1, 0, 't'},
		{"replay", 1, 0, 'R'},  {0}};
	const char *host = "127.0.0.1", *mode = "window";
	int port = 0, window = 192, o;
	double rate = 1000, warmup = 0.3, seconds = 1;
	pid_t watch = 0;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 'h': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'm': mode = optarg; break;
		case 'r': rate = atof(optarg); break;
		case 'w': window = atoi(optarg); break;
		case 'n': count = atoi(optarg); break;
		case 'u': warmup = atof(optarg); break;
		case 's': seconds = atof(optarg); break;
		case 'P': watch = (pid_t)atoi(optarg); break;
		case 'z': size = atoi(optarg); break;
		case 't': tos = atoi(optarg); break;
		case 'R': read_replays(optarg); break;
		default: return 2;
		}
	}
	if (count < 1 || count > MOST_SOCKETS || size < STAMP_SIZE || size > ROOM || rate <= 0) {
		fprintf(stderr, "--sockets takes 1 to %d, --size %d to %d, --rate more than 0\n", MOST_SOCKETS,
			STAMP_SIZE, ROOM);
		return 2;
	}
	int single = !strcmp(mode, "single"), paced = !strcmp(mode, "paced");
	struct sockaddr_in to = address(host, port);
	struct timeval patience = {.tv_usec = PATIENCE / 1000};
	for (int i = 0; i < count; i++) {
		int fd = bound_socket(address("0.0.0.0", 0));
		if (connect(fd, (struct sockaddr *)&to, sizeof to))
			fail("connect");
		set_buffers(fd, 1 << 20);
		set_int(fd, IPPROTO_IP, IP_TOS, tos, "IP_TOS");
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
		sources[i].fd = fd;
	}
	for (int i = 0; i < BATCH; i++) {
		out_vectors[i] = (struct iovec){out[i], (size_t)size};
		in_vectors[i] = (struct iovec){in[i], ROOM};
		out_messages[i].msg_hdr = (struct msghdr){.msg_iov = &out_vectors[i], .msg_iovlen = 1};
		in_messages[i].msg_hdr = (struct msghdr){.msg_iov = &in_vectors[i], .msg_iovlen = 1};
	}

	clockid_t watched = watch ? cpu_clock_of(watch) : CLOCK_MONOTONIC;
	uint64_t begin = clock_ns(CLOCK_MONOTONIC), now = begin, measured_from = 0, singles = 0;
	uint64_t measure = begin + (uint64_t)(warmup * SECOND);
	uint64_t end = measure + (uint64_t)(seconds * SECOND);
	uint64_t cpu = 0, first_sent = 0, first_received = 0;
	while (now < end) {
		if (single)
			step_single(begin + (uint64_t)((double)singles++ * SECOND / rate));
		else if (paced)
			step_paced((uint64_t)((double)(now - begin) * rate / SECOND), now);
		else
			step_window(window, now);
		now = clock_ns(CLOCK_MONOTONIC);
		if (!measured_from && now >= measure) {
			measured_from = now;
			first_sent = sent;
			first_received = received;
			cpu = watch ? clock_ns(watched) : 0;
		}
	}
	if (watch)
		cpu = clock_ns(watched) - cpu;
	double took = (double)(now - measured_from) / SECOND;
	uint64_t window_sent = sent - first_sent, window_received = received - first_received;
	for (uint64_t until = now + GRACE; now < until && received < sent; now = clock_ns(CLOCK_MONOTONIC))
		receive_all(now);

	printf("{\"seconds\": %.6f, \"sent\": %lu, \"received\": %lu, \"cpu_ns\": %lu, \"total_sent\": %lu, "
	       "\"total_received\": %lu, \"wrong\": %lu, \"failed\": %lu, \"rtt_mean_ns\": %.0f}\n",
	       took, window_sent, window_received, cpu, sent, received, wrong, failed,
	       received ? (double)rtt_sum / (double)received : 0.0);
	return 0;
}
