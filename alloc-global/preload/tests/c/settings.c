/* A program with the settings SETTINGS built in. Exits with 0 if it can allocate 20 MiB. */
#include <stdlib.h>

#include <hayloft.h>

const char *hayloft_conf = SETTINGS;

int main(void) {
    void *block = malloc(20 << 20);
    free(block);
    return block ? 0 : 1;
}
