"""Unlearn two topics of a model in memory, with RMU and with RMU with RNA, and see what is forgotten.

    python examples/unlearn_in_memory.py

It takes the embedded model of one million parameters, on a CPU. For a 7B on a GPU, change the places marked (7B).
"""

from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from unlearn import RMU, RNA, CutModel, Optimizer, evaluate, train

TOY = Path(str(files("unlearn"))) / "toy"


def main(steps: int = 100, questions: int = 40) -> None:
    """Train, evaluate, print a table, and write a checkpoint."""
    # (7B) CutModel.load("HuggingFaceH4/zephyr-7b-beta", layer=7)
    model = CutModel.load(TOY / "model", layer=3)

    # (7B) RMU(c=6.5), RMU(c=6.5, rna=RNA(nu=0.03)): c and nu have the scale of the model's hidden states.
    methods = [RMU(c=3.0), RMU(c=3.0, rna=RNA(nu=0.1))]

    # (7B) {name: (texts to forget, texts to retain)}: lists of strings, files, or hub:REPOSITORY:CONFIGURATION:SPLIT.
    retain = TOY / "data" / "retain.jsonl"
    topics = {topic: (TOY / "data" / f"forget-{topic}.jsonl", retain) for topic in ("bio", "cyber")}

    # (7B) steps=500, lr=5e-5, alpha=1200, and neither mask nor optimizer.
    variants = train(
        model,
        methods,
        topics,
        steps=steps,
        lr=2e-4,
        alpha=10,
        mask="padding_and_bos",
        optimizer=Optimizer(schedule="linear"),
        progress=True,
    )

    # (7B) tasks={"retain": ["mmlu"], "forget": ["wmdp_bio", "wmdp_cyber"]}, forget_tokens=["SARS-CoV-2"]
    scores = evaluate(
        model,
        variants,
        tasks={"retain": ["toy_retain"], "forget": ["toy_forget_bio", "toy_forget_cyber"]},
        include_path=str(TOY / "tasks"),
        forget_tokens=str(TOY / "data" / "forget_tokens.txt"),
        subset=questions,
    )
    values = scores[(scores.measure == "acc") & scores.against.isna()]
    print(values.pivot_table("value", ["role", "query"], "variant", dropna=False).round(2))

    with TemporaryDirectory() as folder:
        variants[1].export(folder)  # AutoModelForCausalLM.from_pretrained(folder) loads it
        print("Exported:", *sorted(file.name for file in Path(folder).iterdir()))


if __name__ == "__main__":
    main()
