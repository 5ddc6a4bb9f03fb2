"""A server of OpenAI's protocol over `anyformer.generate`, with a page to talk to its models: `serve`.

limits.py     what a server and a request may use
protocol.py   the bodies of requests, checked
asking.py     requests -> work for the engine
calling.py    functions in conversations
jobs.py       the work, and what happens to it
engine.py     the thread that computes, and the fair queue
batch.py      continuous batching: texts join and leave at any token
prefixes.py   beginnings of prompts that were read before
texts.py      one text that is being written
inbox.py      from the engine's thread to the loop of requests
answers.py    pieces of texts -> OpenAI's objects and events
routes.py     the routes
items.py      the body of /v1/responses
responses.py  its route and its events
handling.py   what the routes share
hearing.py    recordings
looking.py    the wiring of a model, and its attention
card.py       the facts of a model
metrics.py    counters for Prometheus
guard.py      host, origin, key, sizes, headers
app.py        all of it as an ASGI application
page.html     the page at /
server.py     the process: sockets and signals
"""

from anyformer.serve.server import serve

__all__ = ["serve"]
