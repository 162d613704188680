"""Make `configs/default/model` and `configs/default/data` from two Debian packages.

    apt-get download r-cran-janeaustenr sword-text-web
    python build.py texts --debs . --work work     # a minute on a CPU: data/, tokenizer, ids
    python build.py model --work work              # three minutes on one GPU: model/
    python build.py finish --work work             # ten minutes on one CPU core: model/ again

Needs numpy, tokenizers and safetensors, PyTorch for the second step and mlx-lm for the third.
The rows and the tokenizer come out the same every time, the weights nearly so: the schedule of
the second step follows the clock.
"""

import argparse
import random
from pathlib import Path

import corpus
import numpy as np
import texts
from folder import write_folder
from tokenizers import Tokenizer

HOME = Path(__file__).resolve().parent.parent
VOCAB_SIZE, CHATS = 1536, 600_000


def make_texts(debs: Path, work: Path) -> None:
    """Write the fine-tuning rows, the tokenizer and the ids to pretrain on."""
    novels = texts.austen(debs / "r-cran-janeaustenr_1.0.0-1_all.deb")
    held_out = novels.pop("pride")
    text = [p for novel in novels.values() for p in novel if p != "CHAPTER"]
    text += texts.bible(debs / "sword-text-web_426.0-1_all.deb")
    seen = {corpus.plain(s) for p in text for s in texts.sentences(p)}
    splits = corpus.rows(held_out, seen)
    corpus.write_rows(splits, HOME / "data")
    print({name: len(split) for name, split in splits.items()})

    work.mkdir(parents=True, exist_ok=True)
    tokenizer = corpus.train_tokenizer(text, VOCAB_SIZE)
    tokenizer.save(str(work / "tokenizer.json"))
    random.Random(0).shuffle(text)
    ids, _ = corpus.encode(tokenizer, [p + "\n" for p in text])
    chat, starts = corpus.encode(tokenizer, list(corpus.chats(text, CHATS, seed=1)))
    np.savez_compressed(work / "ids.npz", text=ids, chat=chat, starts=starts)
    print(f"{len(ids)} tokens of text, {len(chat)} of chat in {CHATS} exchanges")


def finish_model(work: Path, updates: int) -> None:
    """Go on from the folder as it is."""
    import json

    from finish import finish

    data = dict(np.load(work / "ids.npz"))
    weights = finish(HOME / "model", data, updates=updates)
    c = json.loads((HOME / "model" / "config.json").read_text())
    write_folder(HOME / "model", c, weights, Tokenizer.from_file(str(work / "tokenizer.json")))


def make_model(work: Path, seconds: float) -> None:
    """Pretrain and write the Hugging Face folder."""
    import torch
    from pretrain import config, pretrain

    c = config(VOCAB_SIZE, hidden=128, layers=5, heads=4, kv=2, ff=320)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = dict(np.load(work / "ids.npz"))
    model = pretrain(c, data, seconds=seconds, device=device)
    weights = {name: p.float().cpu().numpy() for name, p in model.state_dict().items()}
    print(sum(p.size for p in weights.values()), "parameters")
    write_folder(HOME / "model", c, weights, Tokenizer.from_file(str(work / "tokenizer.json")))


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("texts", "model", "finish"))
    parser.add_argument("--debs", type=Path, default=Path())
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--updates", type=int, default=210)
    args = parser.parse_args()
    if args.step == "texts":
        make_texts(args.debs, args.work)
    elif args.step == "model":
        make_model(args.work, args.seconds)
    else:
        finish_model(args.work, args.updates)


if __name__ == "__main__":
    main()
