/* A library whose handlers of forks take a lock that its functions hold while they allocate. Its constructor registers them before
   those of a program's own, and of libraries that are initialised later. */
#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void take(void)
{
    pthread_mutex_lock(&lock);
}

static void release(void)
{
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void begin(void)
{
    pthread_atfork(take, release, release);
}

/* Allocates beyond what CPUs keep, so that it takes locks of the allocator. */
void allocate_locked(void)
{
    take();
    free(malloc(100000));
    release();
}
