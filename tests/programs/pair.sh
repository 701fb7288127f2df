# A loop that allocates and frees 64 bytes: the cost of a pair through a shared library.
packages="gcc libc6-dev"
binary=$PWD/pair

prepare() {
    cat > pair.c <<'C'
#include <stdlib.h>

int main(int count, char **arguments) {
    for (long left = atol(arguments[count - 1]) * 30000000; left > 0; left--) {
        char *volatile block = malloc(64);
        if (!block) return 1;
        free(block);
    }
}
C
    gcc -O2 -fno-builtin -o pair pair.c
}

run() { preloaded ./pair "$SIZE"; }
