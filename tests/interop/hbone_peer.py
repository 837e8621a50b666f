#!/usr/bin/env python3
"""An HBONE peer made of OpenSSL (Python's ssl) and hyper-h2: nothing in it is shared with Warren.

  hbone_peer.py client --to IP:15008 --authority IP:PORT --cert C --key K --ca R [--streams N] [--bytes N] [--way W]
      opens CONNECT streams, all in one tunnel, and uses each as W says:
        echo     sends the patterned bytes, expects them back, half-closes after the last, expects the end (default)
        last     lets the other side send its bytes and half-close first, only then sends as many and half-closes
        goaway   sends a byte and waits for it, again and again, until GOAWAY comes; then does as `echo` does
      Prints one JSON object: {"peer": "spiffe://...", "goaway": null or its code, "streams": [{"status": 200,
      "received": N, "ended": true, "reset": null}, ...]}.
  hbone_peer.py server --listen IP:15008 --cert C --key K --ca R [--status 200] [--goaway-after N]
      accepts CONNECT streams and echoes on them; prints one JSON line for each: authority, headers, peer; and one
      when it ended: received bytes, and whether by END_STREAM or by reset. Sends GOAWAY after the N-th stream.
  hbone_peer.py plain --to IP:PORT [--bytes N]
      no HBONE at all: a client that sends the bytes, half-closes, and expects them and the end back.
  hbone_peer.py app --listen IP:PORT [--bytes N]
      no HBONE at all: a server that sends the bytes, half-closes, and only then reads; prints how much came.

Exit status 0 when every stream did as it should (client); server and app run until they are ended.
"""

import argparse
import json
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

BLOCK = 251 * 64
PATTERN = bytes(range(251)) * 300

# hyper-h2 is closed by any GOAWAY, but RFC 9113 lets the streams below the last one go on.
_machine, _received = h2.connection.H2ConnectionStateMachine, h2.connection.ConnectionInputs.RECV_GOAWAY
_open = h2.connection.ConnectionState.CLIENT_OPEN
_machine._transitions[(_open, _received)] = (None, _open)


def pattern(at, n):
    return PATTERN[at % 251 : at % 251 + n]


def context(args, purpose):
    ctx = ssl.SSLContext(purpose)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_3
    ctx.load_cert_chain(args.cert, args.key)
    ctx.load_verify_locations(args.ca)
    ctx.check_hostname = False  # HBONE names no host: the URI SAN is what identifies the peer
    ctx.verify_mode = ssl.CERT_REQUIRED
    ctx.set_alpn_protocols(["h2"])
    return ctx


def identity(tls):
    san = (tls.getpeercert() or {}).get("subjectAltName", ())
    names = [value for kind, value in san if kind == "URI"]
    return names[0] if len(names) == 1 else None


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def listen(text):
    host, port = address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::"
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
    say({"listening": text})
    return listener


def say(what):
    print(json.dumps(what), flush=True)


def connection(client, args):
    config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
    conn = h2.connection.H2Connection(config)
    conn.initiate_connection()
    conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: args.window})
    return conn


class Client:
    """All streams of one tunnel, and what was seen of each."""

    def __init__(self, args):
        self.args = args
        raw = socket.create_connection(address(args.to), timeout=40)
        self.tls = context(args, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw)
        assert self.tls.selected_alpn_protocol() == "h2", "the server did not choose h2"
        self.conn = connection(True, args)
        self.goaway = None
        self.streams = {}
        self.opened = 0

    def run(self):
        while True:
            self.open_more()
            for id, seen in self.streams.items():
                if seen["status"] == 200 and seen["reset"] is None:
                    self.pump(id, seen)
            self.flush()
            if self.opened == self.args.streams and all(s["over"] for s in self.streams.values()):
                break
            data = self.tls.recv(65536)
            if not data:
                break
            for event in self.conn.receive_data(data):
                self.event(event)
        say({"peer": identity(self.tls), "goaway": self.goaway, "streams": list(self.streams.values())})
        good = all(s["status"] == 200 and s["received"] == self.args.bytes and s["ended"] for s in self.streams.values())
        return 0 if good and len(self.streams) == self.args.streams else 1

    def open_more(self):
        """As many as the server allows at once."""
        limit = min(self.conn.remote_settings.max_concurrent_streams, 1000)
        while self.opened < self.args.streams and self.conn.open_outbound_streams < limit and self.goaway is None:
            id = self.conn.get_next_available_stream_id()
            self.conn.send_headers(id, [(":method", "CONNECT"), (":authority", self.args.authority)])
            self.streams[id] = {"status": None, "received": 0, "sent": 0, "ended": False, "reset": None, "over": False}
            self.opened += 1

    def flush(self):
        out = self.conn.data_to_send()
        if out:
            try:
                self.tls.sendall(out)
            except OSError:
                pass  # the server may already have gone

    def pump(self, id, seen):
        """Sends what the windows and the way allow, and END_STREAM after the last byte; nothing before the 200."""
        total, way = self.args.bytes, self.args.way
        if way == "last" and not seen["ended"]:
            return
        if way == "goaway" and self.goaway is None:
            if seen["sent"] == seen["received"] and seen["sent"] < total - 1:
                self.send(id, seen, 1)
            return
        while seen["sent"] < total:
            n = min(self.conn.local_flow_control_window(id), self.conn.max_outbound_frame_size, total - seen["sent"], BLOCK)
            if n <= 0:
                return
            self.send(id, seen, n)
        if not seen.get("closed"):
            self.conn.end_stream(id)
            seen["closed"] = True
        seen["over"] = seen["ended"]

    def send(self, id, seen, n):
        self.conn.send_data(id, pattern(seen["sent"], n))
        seen["sent"] += n

    def event(self, event):
        seen = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ResponseReceived):
            seen["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            if event.data != pattern(seen["received"], len(event.data)):
                raise SystemExit(f"wrong bytes near {seen['received']}")
            seen["received"] += len(event.data)
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            seen["ended"] = True
            seen["over"] = seen["over"] or seen["status"] != 200 or bool(seen.get("closed"))
        elif isinstance(event, h2.events.StreamReset):
            seen["reset"] = int(event.error_code)
            seen["over"] = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)


def server(args):
    ctx = context(args, ssl.PROTOCOL_TLS_SERVER)
    listener = listen(args.listen)
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=tunnel, args=(ctx, raw, args), daemon=True).start()


def tunnel(ctx, raw, args):
    try:
        Tunnel(ctx.wrap_socket(raw, server_side=True), args).run()
    except (ssl.SSLError, OSError, h2.exceptions.ProtocolError) as error:
        say({"error": str(error)})


class Tunnel:
    """One tunnel that a client opened."""

    def __init__(self, tls, args):
        self.tls, self.args = tls, args
        self.conn = connection(False, args)
        self.pending, self.ended, self.count = {}, set(), {}
        self.total, self.last = 0, 0

    def run(self):
        self.tls.sendall(self.conn.data_to_send())
        while True:
            data = self.tls.recv(65536)
            if not data:
                return
            for event in self.conn.receive_data(data):
                self.event(event)
            for stream in list(self.pending):
                self.echo(stream)
            self.tls.sendall(self.conn.data_to_send())

    def event(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.request(event)
        elif isinstance(event, h2.events.DataReceived):
            if event.stream_id in self.pending:
                self.pending[event.stream_id] += event.data
                self.count[event.stream_id] += len(event.data)
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.pending.pop(event.stream_id, None)
            self.over(event.stream_id, "reset")

    def request(self, event):
        if self.last and event.stream_id > self.last:
            return  # it was told that this is not served any more
        headers = dict(event.headers)
        names = {"authority": headers.get(":authority"), "method": headers.get(":method")}
        say({**names, "headers": headers, "peer": identity(self.tls)})
        refuse = self.args.status != 200
        self.conn.send_headers(event.stream_id, [(":status", str(self.args.status))], end_stream=refuse)
        if refuse:
            return
        self.pending[event.stream_id], self.count[event.stream_id] = bytearray(), 0
        self.total += 1
        if self.total == self.args.goaway_after:
            # By hand: hyper-h2 would end its own streams with it.
            frame = bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + event.stream_id.to_bytes(4, "big") + bytes(4)
            self.tls.sendall(self.conn.data_to_send() + frame)
            self.last = event.stream_id

    def echo(self, stream):
        data = self.pending[stream]
        while data:
            n = min(self.conn.local_flow_control_window(stream), self.conn.max_outbound_frame_size, len(data))
            if n <= 0:
                return
            self.conn.send_data(stream, bytes(data[:n]))
            del data[:n]
        if stream in self.ended:
            self.conn.end_stream(stream)
            del self.pending[stream]
            self.over(stream, "end")

    def over(self, stream, how):
        say({"stream": stream, "received": self.count.pop(stream, 0), "by": how})


def app(args):
    listener = listen(args.listen)
    while True:
        raw, _ = listener.accept()
        with raw:
            sent = 0
            while sent < args.bytes:
                n = min(BLOCK, args.bytes - sent)
                raw.sendall(pattern(sent, n))
                sent += n
            raw.shutdown(socket.SHUT_WR)
            received = 0
            while True:
                data = raw.recv(65536)
                if not data:
                    break
                if data != pattern(received, len(data)):
                    raise SystemExit(f"wrong bytes near {received}")
                received += len(data)
            say({"received": received})


def plain(args):
    raw = socket.create_connection(address(args.to), timeout=40)

    def send():
        for at in range(0, args.bytes, BLOCK):
            raw.sendall(pattern(at, min(BLOCK, args.bytes - at)))
        raw.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    while True:
        data = raw.recv(65536)
        if not data:
            break
        if data != pattern(received, len(data)):
            raise SystemExit(f"wrong bytes near {received}")
        received += len(data)
    sender.join()
    say({"received": received, "ended": True})
    return 0 if received == args.bytes else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["client", "server", "plain", "app"])
    parser.add_argument("--to")
    parser.add_argument("--listen")
    parser.add_argument("--authority")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--ca")
    parser.add_argument("--bytes", type=int, default=1 << 20)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--way", choices=["echo", "last", "goaway"], default="echo")
    parser.add_argument("--window", type=int, default=70_000)
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--goaway-after", type=int, default=0)
    args = parser.parse_args()
    roles = {"client": lambda a: Client(a).run(), "server": server, "plain": plain, "app": app}
    return roles[args.role](args)


if __name__ == "__main__":
    sys.exit(main())
