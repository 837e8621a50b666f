#!/usr/bin/env python3
"""An HBONE peer made of OpenSSL (Python's ssl) and hyper-h2: nothing in it is shared with Warren.

  hbone_peer.py client --to IP:15008 --authority IP:PORT --cert C --key K --ca R --bytes N
      opens one CONNECT stream, sends N patterned bytes, expects them back (an echo), half-closes, checks the end.
      Prints one JSON object: {"status": 200, "echoed": N, "ended": true, "peer": "spiffe://..."}.
  hbone_peer.py server --listen IP:15008 --cert C --key K --ca R [--status 200]
      accepts CONNECT streams and echoes on them; prints one JSON line for each: authority, headers, peer.

Exit status 0 when all bytes came back and the stream ended as it should (client), or on SIGTERM (server).
"""

import argparse
import json
import selectors
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings

BLOCK = 251 * 64


def pattern(at, n):
    return bytes((at + i) % 251 for i in range(n))


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
    names = dict_of_san(tls.getpeercert() or {})
    return names[0] if len(names) == 1 else None


def dict_of_san(cert):
    return [value for kind, value in cert.get("subjectAltName", ()) if kind == "URI"]


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def client(args):
    raw = socket.create_connection(address(args.to), timeout=20)
    tls = context(args, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw)
    assert tls.selected_alpn_protocol() == "h2", "the server did not choose h2"
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: args.window})
    conn.send_headers(1, [(":method", "CONNECT"), (":authority", args.authority)])
    tls.sendall(conn.data_to_send())
    seen = {"status": None, "echoed": 0, "ended": False, "reset": None, "peer": identity(tls)}
    state = {"sent": 0, "closed": False}
    while not seen["ended"] and seen["reset"] is None:
        pump(conn, state, seen, args.bytes)
        out = conn.data_to_send()
        if out:
            tls.sendall(out)
        data = tls.recv(65536)
        if not data:
            break
        for event in conn.receive_data(data):
            client_event(conn, event, seen)
    try:
        tls.sendall(conn.data_to_send())
    except OSError:
        pass  # the server may already have gone
    print(json.dumps(seen))
    good = seen["status"] == 200 and seen["echoed"] == args.bytes and seen["ended"]
    return 0 if good else 1


def pump(conn, state, seen, total):
    """Sends what the windows allow, and END_STREAM after the last byte; nothing before the 200."""
    if seen["status"] != 200:
        return
    while state["sent"] < total:
        n = min(conn.local_flow_control_window(1), conn.max_outbound_frame_size, total - state["sent"], BLOCK)
        if n <= 0:
            return
        conn.send_data(1, pattern(state["sent"], n))
        state["sent"] += n
    if not state["closed"]:
        conn.end_stream(1)
        state["closed"] = True


def client_event(conn, event, seen):
    if isinstance(event, h2.events.ResponseReceived):
        seen["status"] = int(dict(event.headers)[":status"])
    elif isinstance(event, h2.events.DataReceived):
        if event.data != pattern(seen["echoed"], len(event.data)):
            raise SystemExit(f"wrong bytes near {seen['echoed']}")
        seen["echoed"] += len(event.data)
        conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.StreamEnded):
        seen["ended"] = True
    elif isinstance(event, h2.events.StreamReset):
        seen["reset"] = int(event.error_code)
    elif isinstance(event, h2.events.ConnectionTerminated):
        seen["reset"] = int(event.error_code)


def server(args):
    ctx = context(args, ssl.PROTOCOL_TLS_SERVER)
    host, port = address(args.listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    print(json.dumps({"listening": args.listen}), flush=True)
    while True:
        raw, _ = listener.accept()
        try:
            tls = ctx.wrap_socket(raw, server_side=True)
            serve(tls, args)
        except (ssl.SSLError, OSError) as error:
            print(json.dumps({"error": str(error)}), flush=True)


def serve(tls, args):
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    conn.initiate_connection()
    conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: args.window})
    tls.sendall(conn.data_to_send())
    pending, ended = {}, set()
    tls.setblocking(False)
    wait = selectors.DefaultSelector()
    wait.register(tls, selectors.EVENT_READ)
    while True:
        if not tls.pending():
            wait.select(timeout=1)
        try:
            data = tls.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            continue
        if not data:
            return
        for event in conn.receive_data(data):
            server_event(conn, event, pending, ended, tls, args)
        for stream in list(pending):
            echo(conn, stream, pending, ended)
        out = conn.data_to_send()
        tls.setblocking(True)
        tls.sendall(out)
        tls.setblocking(False)


def server_event(conn, event, pending, ended, tls, args):
    if isinstance(event, h2.events.RequestReceived):
        headers = dict(event.headers)
        print(json.dumps({"authority": headers.get(":authority"), "method": headers.get(":method"), "headers": headers, "peer": identity(tls)}), flush=True)
        refuse = args.status != 200
        conn.send_headers(event.stream_id, [(":status", str(args.status))], end_stream=refuse)
        if not refuse:
            pending[event.stream_id] = bytearray()
    elif isinstance(event, h2.events.DataReceived) and event.stream_id in pending:
        pending[event.stream_id] += event.data
        conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.StreamEnded):
        ended.add(event.stream_id)
    elif isinstance(event, h2.events.StreamReset):
        pending.pop(event.stream_id, None)


def echo(conn, stream, pending, ended):
    data = pending[stream]
    while data:
        n = min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size, len(data))
        if n <= 0:
            return
        conn.send_data(stream, bytes(data[:n]))
        del data[:n]
    if stream in ended:
        conn.end_stream(stream)
        del pending[stream]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["client", "server"])
    parser.add_argument("--to")
    parser.add_argument("--listen")
    parser.add_argument("--authority")
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--bytes", type=int, default=1 << 20)
    parser.add_argument("--window", type=int, default=70_000)
    parser.add_argument("--status", type=int, default=200)
    args = parser.parse_args()
    return client(args) if args.role == "client" else server(args)


if __name__ == "__main__":
    sys.exit(main())
