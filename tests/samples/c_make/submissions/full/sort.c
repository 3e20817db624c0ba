#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

int main(void) {
    size_t count = 0, room = 16;
    long *numbers = malloc(room * sizeof *numbers);
    while (numbers && scanf("%ld", &numbers[count]) == 1)
        if (++count == room)
            numbers = realloc(numbers, (room *= 2) * sizeof *numbers);
    qsort(numbers, count, sizeof *numbers, compare);
    for (size_t i = 0; i < count; i++)
        printf("%ld\n", numbers[i]);
    free(numbers);
    return 0;
}
