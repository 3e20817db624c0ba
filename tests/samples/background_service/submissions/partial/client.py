import json
import sys
from urllib.request import urlopen

address, *names = sys.argv[1:]
print(sum(json.load(urlopen(f"{address}/price/{name}"))["price"] for name in names))
