/* A library whose fork handlers take a lock that its functions hold while they allocate. Its
 * constructor registers them before the constructors of the program run, and of libraries that are
 * initialised later. With ALLOCATES, the constructor allocates before that, as many do. */
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
#ifdef ALLOCATES
    free(malloc(100));
#endif
    pthread_atfork(acquire, release, release);
}

/* Allocates and frees a block while holding the lock. The block is longer than all size classes, so
 * the allocator takes locks of its own each time. */
void allocate_locked(void)
{
    acquire();
    free(malloc(2000000));
    release();
}
