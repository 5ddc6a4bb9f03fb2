"""Classes or scores of texts by the model beside this file: needs onnxruntime and tokenizers only.

python run.py "one text" "another"      or a text a line on stdin; --threads N
"""

import json
import sys
from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer

folder = Path(__file__).parent
arguments = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
if arguments[:1] == ["--threads"]:
    options.intra_op_num_threads, arguments = int(arguments[1]), arguments[2:]
session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["anyformer"])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(facts["tokens"])

for text in arguments or map(str.strip, sys.stdin):
    ids = tokenizer.encode(text).ids or [0]
    (logits,) = session.run(None, {"input_ids": [ids], "attention_mask": [[1] * len(ids)]})[0].tolist()
    if facts["classes"]:
        print(facts["classes"][logits.index(max(logits))], text, sep="\t")
    else:
        print(f"{logits[0] * facts['deviation'] + facts['mean']:.4f}", text, sep="\t")
