"""What a recipe will take, before it is started: memory, operations, time and bytes sent.

gpus.py      what a GPU has
sizes.py     a model's sizes, from its config alone
step.py      the tokens of a step, and the assumptions they rest on
memory.py    bytes on one GPU
work.py      operations of a step, by the way its gradient is made
traffic.py   bytes sent in a step
"""
