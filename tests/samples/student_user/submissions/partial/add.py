first, second = input().split()
print(abs(int(first)) + int(second))
