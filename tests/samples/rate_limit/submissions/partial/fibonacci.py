import sys


def fibonacci(index):
    return index if index < 2 else fibonacci(index - 1) + fibonacci(index - 2)


print(fibonacci(int(sys.argv[1])))
