def fibonacci(index):
    return fibonacci(index - 1) + fibonacci(index - 2)


print(fibonacci(1))
