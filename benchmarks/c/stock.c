/* A library to be preloaded: no program gets other socket buffers than the system's stock ones.
 *
 * Asking for another size succeeds and changes nothing, so that what a collector does with small
 * buffers can be seen without changing the machine.
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	if (level == SOL_SOCKET && (name == SO_RCVBUF || name == SO_RCVBUFFORCE || name == SO_SNDBUF ||
				    name == SO_SNDBUFFORCE))
		return 0;
	return (int)syscall(SYS_setsockopt, fd, level, name, value, length);
}
