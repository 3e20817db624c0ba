import sys

first, second = 0, 1
for _ in range(int(sys.argv[1])):
    first, second = second, first + second
print(first)
