/* A library whose fork handlers take a lock that its functions hold while they allocate. Its
 * constructor registers them before the handlers of the program, and of libraries that are
 * initialised later. */
#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void)
{
    pthread_mutex_lock(&lock);
}

static void release(void)
{
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void register_handlers(void)
{
    pthread_atfork(acquire, release, release);
}

/* Allocates and frees a block while holding the lock. The size is meant to be beyond the sheaves,
 * so that the allocator takes its own locks. */
void allocate_locked(void)
{
    acquire();
    free(malloc(100000));
    release();
}
