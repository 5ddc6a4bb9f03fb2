"""Federated fine-tuning: clients keep their examples, and send updates; sums that nobody sees into, and privacy.

federate.py    `federate`, which is the command too: rounds, checkpoints, what is printed
options.py     its options
server.py      who is in a round, checks of what comes, the mean
host.py        the clients: local training, clipping, masks
processes.py   the clients as processes; wire.py, tls.py: messages, encryption
flower.py      the same server and clients as a Flower app
masks.py       secure sums; shamir.py, grid.py: shares of secrets, numbers that cannot overflow
privacy.py     clipping and noise; accountant.py: epsilon; audit.py: a lower bound of it, by canaries
"""

from anyformer.federate.federate import Federated, federate

__all__ = ["Federated", "federate"]
