first, second = map(int, input().split())
eaten = []
while first < 0:
    eaten.append(b"x" * 32_000_000)
print(first + second)
