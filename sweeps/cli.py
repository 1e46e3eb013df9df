"""`gopher VERB [group=choice] [key=value ...]`: every verb takes the same Hydra overrides. Exit codes 0, 1, 2, 3, 130.

Nothing heavy is imported before the verb is known, so `gopher --help` is instant.
"""

import errno
import importlib
import sys
import traceback

from gopher.errors import GopherError, SetupError, UsageError, did_you_mean
from sweeps.redact import hide_secrets, redacted

VERBS = {
    "plan": "every run of a sweep with its parameters, tokens and FLOPs; starts nothing",
    "launch": "train what is missing on Ray; a rerun goes on where it was",
    "status": "where every run stands",
    "stop": "ask a running launch, or one run, to checkpoint and end: gopher stop [RUN]",
    "resume": "go on with what was stopped or failed",
    "why": "what a run waits for or failed of, and how it differs from the nearest finished run: gopher why RUN",
    "logs": "events, warnings and worker output of a run: gopher logs RUN",
    "fit": "the scaling curve of a sweep, or of points=FILE.csv, with intervals",
    "report": "figures and one HTML page, also logged to MLflow",
    "forecast": "freeze a prediction before its run, score it afterwards: gopher forecast freeze|score|list",
    "suggest": "which run narrows the target's interval most per unit of cost",
    "eval": "task scores of a sweep's checkpoints, or of checkpoint=DIR: gopher eval tasks=[a,b] tasks_path=DIR",
    "contamination": "which evaluation items share 13 words in a row with the training text",
    "chat": "talk to a trained checkpoint: gopher chat outputs/runs/KEY; answers lines from a pipe too",
    "compress": "lossless compression by each rung against gzip and LZMA, checked bit for bit",
    "doctor": "what on this machine would keep a sweep from running, with cures",
    "ui": "MLflow on loopback, with a link to the dashboard",
    "completion": "the TAB key's script: source <(gopher completion bash), or zsh",
}
WIDTH = max(map(len, VERBS))
USAGE = """usage: gopher VERB [group=choice] [key=value ...]

{verbs}

examples
  gopher launch sweep=demo                    train the five-minute ladder on this machine
  gopher fit sweep=demo format=json           its curve as JSON
  gopher plan sweep=gopher                    the paper's ladder, 44M to 280B
  gopher plan sweep=demo --cfg                the whole config after your overrides
  gopher launch sweep=demo axes.seed=[1,2]    the same ladder under two more seeds
"""


def main() -> int:
    """The console script: the exit code of the verb; every error is one sentence on stderr."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:{WIDTH}} {what}" for verb, what in VERBS.items())))
        return 0 if arguments else 2
    try:
        if arguments[0] == "__complete":
            from sweeps.completion import candidates

            print("\n".join(candidates(" ".join(arguments[1:]), list(VERBS))), flush=True)
            return 0
        return run_verb(arguments[0], arguments[1:])
    except GopherError as error:
        print(f"gopher: {hide_secrets(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gopher: interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone (| head); nothing is wrong
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            print(f"gopher: {os_sentence(error)}", file=sys.stderr)
            return SetupError.exit_code
        print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)  # ours, so it is shown whole
        return 1


def os_sentence(error: OSError) -> str:
    cures = {errno.EACCES: "give yourself the right to write there", errno.EROFS: "name a folder that can be written"}
    cure = cures.get(error.errno or 0, "free some space; the same command then goes on where it was")
    return f"{error.strerror}: {error.filename or 'the output root'}; {cure}, or set output_root=DIR"


def run_verb(verb: str, words: list[str]) -> int:
    if verb not in VERBS:
        raise UsageError(f"no verb '{verb}'{did_you_mean(verb, list(VERBS))}; `gopher --help` lists them")
    if verb == "completion" and words[:1] not in (["-h"], ["--help"]):
        from sweeps.completion import script

        print(script(words))
        return 0
    if words and words[0] in ("-h", "--help"):
        print(f"gopher {verb}: {VERBS[verb]}\n\nKeys and groups: `gopher {verb} --cfg`; examples: `gopher --help`")
        return 0
    show_config = "--cfg" in words
    overrides = [w for w in words if w != "--cfg"]
    flags = [w for w in overrides if w.startswith("-")]
    if flags:
        raise UsageError(
            f"{flags[0]} is no option of gopher {verb}; options are written key=value, and --cfg prints them all"
        )

    from sweeps.compose import compose, groups, hydra_session
    from sweeps.launched import as_launched

    with hydra_session():
        if any(word.startswith("sweep=") for word in overrides):
            overrides = as_launched(overrides, groups()["sweep"], compose([]).tree["output_root"])
        if show_config:
            import yaml

            print(yaml.safe_dump(redacted(compose(overrides).tree), sort_keys=False, allow_unicode=True), end="")
            return 0
        module = importlib.import_module(f"sweeps.verbs.{verb}")
        result: int = module.run(compose, overrides)
        return result


if __name__ == "__main__":
    sys.exit(main())
