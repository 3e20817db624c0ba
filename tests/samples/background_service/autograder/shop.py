"""A web shop on a free port of the loopback interface; writes its address to the FIFO it is given. Counts in Redis."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRICES = {"apple": 3, "pear": 4}


class Shop(BaseHTTPRequestHandler):
    def do_GET(self):
        subprocess.run(["redis-cli", "-s", "/run/redis/shop.sock", "INCR", "requests"], check=True, capture_output=True)
        price = PRICES.get(self.path.removeprefix("/price/"))
        self.send_response(200 if price else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"price": price}).encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
with open(sys.argv[1], "w") as fifo:
    print(f"http://127.0.0.1:{server.server_port}", file=fifo)
server.serve_forever()
