import json
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

address, *names = sys.argv[1:]
try:
    print(sum(json.load(urlopen(f"{address}/price/{name}"))["price"] for name in names))
except HTTPError:
    print("sold out")
