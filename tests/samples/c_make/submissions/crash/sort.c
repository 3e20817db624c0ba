#include <stdio.h>

int main(void) {
    long numbers[2000];
    int count = 0;
    while (scanf("%ld", &numbers[count]) == 1)
        count++;
    if (count > 3)
        return *(volatile int *)0;
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && numbers[j] < numbers[j - 1]; j--) {
            long swapped = numbers[j];
            numbers[j] = numbers[j - 1];
            numbers[j - 1] = swapped;
        }
    for (int i = 0; i < count; i++)
        printf("%ld\n", numbers[i]);
    return 0;
}
