"""Trains a small dense Llama with transformers on source code and saves it as people publish models.

    pip install torch==2.10.0 transformers==5.23.0 tokenizers safetensors
    python dense.py runs/story/dense FILE...

The files are plain text, read one after the other up to 4 MB; a tenth of them validates.
"""
import sys

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT, FILES = sys.argv[1], sys.argv[2:]
STEPS, SEQ_LEN, BATCH, RATE, VOCABULARY, MAX_CHARS = 300, 128, 16, 2e-3, 1024, 4_000_000

torch.manual_seed(0)
text = "\n".join(open(path, encoding="utf-8").read() for path in FILES)[:MAX_CHARS]
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator([text], trainer)
published = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
)

ids = torch.tensor(tokenizer.encode(text).ids)
cut = int(0.9 * len(ids))
train, validation = ids[:cut], ids[cut:]
model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
for _ in range(STEPS):
    starts = torch.randint(len(train) - SEQ_LEN - 1, (BATCH,))
    batch = torch.stack([train[start : start + SEQ_LEN] for start in starts])
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()

model.eval()
windows = validation[: len(validation) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
with torch.no_grad():
    nats = torch.stack([model(input_ids=part, labels=part).loss for part in windows.split(32)]).mean().item()
model.save_pretrained(OUT)
published.save_pretrained(OUT)
count = sum(parameter.numel() for parameter in model.parameters())
print(f"{OUT}: {count} parameters, validation {nats:.3f} nats per token")
