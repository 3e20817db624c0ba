eaten = []
while True:
    eaten.append(b"x" * 32_000_000)
