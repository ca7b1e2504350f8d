"""Loads an exported folder with transformers, and continues a text: python load.py runs/story/published [TEXT]

Fails if a tensor is missing or superfluous, or the logits are not those of parity.json's checkpoint.
"""
import json
import sys
from pathlib import Path

import torch
import transformers

folder = Path(sys.argv[1])
prompt = sys.argv[2] if len(sys.argv) > 2 else "今天早上老师"
model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
model.eval()
wrong = {key: sorted(map(str, names)) for key, names in report.items() if names}
assert not wrong, wrong

certificate = json.loads((folder / "parity.json").read_text())
shape = certificate["input_shape"]
ids = (torch.arange(shape[0] * shape[1]).view(shape) * 7 + 3) % model.config.vocab_size
with torch.no_grad():
    largest = model(input_ids=ids).logits.abs().max().item()
expected = certificate["logits_max_abs"]
assert abs(largest - expected) < 1e-4 * expected, f"largest logit {largest}, in parity.json {expected}"

tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(prompt, return_tensors="pt")
generated = model.generate(**tokens, max_new_tokens=40, do_sample=False, pad_token_id=0)
print(f"{type(model).__name__}: {sum(p.numel() for p in model.parameters())} parameters, no key missing or unexpected, largest logit {largest:.6f}")
print(tokenizer.decode(generated[0], skip_special_tokens=True))
