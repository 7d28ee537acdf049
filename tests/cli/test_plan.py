#!/usr/bin/env python3
"""consort plan: files and shapes, this machine and others, what is printed and what is refused.

Environment: CONSORT (the program under test).
"""
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
for path in (HERE, HERE.parent, HERE.parent / "oracle"):
    sys.path.insert(0, str(path))

import gguf
import make_models
from tap import ROOT
from test_cli import DEMO, REPORT, check, check_run, refuse, run, text_model

FIVE = "nodes: [{machine: mac-studio-m1-max, count: 5, name: mac}]\nlink: 10gbe\n"
KINDS = ("one node", "replicas", "pipeline", "tensor parallel", "pipeline of tensor-parallel groups")


def write(folder, text):
    path = folder / "room.yaml"
    path.write_text(text)
    return path


def plan(model, *arguments):
    """The JSON object, or None where it is none."""
    done = run("plan", model, "--json", *arguments)
    try:
        return json.loads(done.out)
    except ValueError:
        check(False, f"plan {model} --json", done)
        return None


def check_places(name, value):
    """Every placement has all layers once, and no node more than it holds."""
    good = value["plans"] != []
    for place in value["plans"]:
        layer = 0
        for stage in place["stages"]:
            whole = place["kind"] == "replicas"
            good = good and stage["first_layer"] == (0 if whole else layer)
            layer = stage["end_layer"]
            for shard in stage["shards"]:
                good = good and 0 < shard["memory_bytes"] <= shard["memory_limit_bytes"]
                good = good and shard["share"] > 0
        good = good and place["kind"] in KINDS and place["tokens_per_second"] > 0
    check(good, name, value["plans"])


def this_machine(folder):
    model = text_model(folder / "model.gguf")
    done = run("plan", model)
    check_run("plan, this machine", done, err="^$")
    text = done.out.decode()
    check("alone" in text and "model.gguf" in text and "0-1" in text, "a placement with its layers", text)
    value = plan(model, "--ctx", 256, "--kv-type", "f32")
    check_places("this machine has all layers", value)
    node = value["nodes"][0]
    check(
        len(value["nodes"]) == 1 and node["read_bytes_per_second"] > 1e8 and node["flops"] > 1e8,
        "this machine was measured",
        node,
    )
    file = gguf.File(model)
    weights = sum(len(data) for _, _, data in file.tensors.values())
    check(value["model"]["weights_bytes"] == weights, "weights are those of the file", value["model"])
    # One KV head of 32 keys and 32 values, two layers.
    check(value["model"]["kv_bytes"] == 2 * 64 * 4 * 256, "the cache of a context", value["model"])
    check(plan(model)["work"]["context"] == 256, "no more context than trained")


def architectures(folder):
    """Grouped and fused heads, MLA, experts, windows: what a node holds alone is the file."""
    room = write(folder, "nodes: [{machine: pc-ddr5-2ch, count: 2, memory-gb: 4}]\nlink: thunderbolt5-rdma\n")
    names = "llama-heads qwen2moe llama4 command-r gemma3 phi3 deepseek2 deepseek3 gpt-oss glm4moe grok starcoder2"
    for name in names.split():
        (case,) = [c for c in make_models.CASES if c.name == name]
        model = make_models.make(case, folder)[0]
        value = plan(model, "--nodes", room, "--ctx", 128)
        check_places(f"{name} has its places", value)
        weights = sum(
            len(data)
            for tensor, (_, _, data) in gguf.File(model).tensors.items()
            if not tensor.startswith(f"blk.{value['plans'][-1]['stages'][-1]['end_layer']}.")
        )
        check(value["model"]["weights_bytes"] == weights, f"the weights of {name}", value["model"])
    (case,) = [c for c in make_models.CASES if c.name == "bert-cls"]
    refuse("an embedding model", run("plan", make_models.make(case, folder)[0], "--nodes", room), "writes no text")


def machines(folder):
    room = write(folder, FIVE)
    value = plan("1b-q4", "--nodes", room, "--ctx", 1024)
    check_places("a small model", value)
    check([p["kind"] for p in value["plans"]] == ["one node"], "a small model stays on one", value["plans"])
    why = [r["reason"] for r in value["rejected"] if r["kind"] == "pipeline" and r["nodes"] == 5]
    check(
        len(why) == 1 and "5 stages one after the other" in why[0] and "mac-1 alone reaches" in why[0],
        "the pipeline of five is refused with its numbers",
        why,
    )
    value = plan("405b-q4", "--nodes", room, "--ctx", 1024)
    check_places("a large model", value)
    check(value["plans"][0]["nodes"] == 5, "a large model takes all five", value["plans"])
    value = plan("1b-q4", "--nodes", room, "--streams", 64, "--objective", "throughput")
    check(value["plans"][0]["kind"] == "replicas", "many streams take replicas", value["plans"])
    text = run("plan", "405b-q4", "--nodes", room, "--ctx", 1024, "--all")
    check_run("plan --all", text, err="^$")
    words = text.out.decode()
    check("mac-5" in words and "not taken:" in words and "mac-1 alone: 22" in words, "reasons", words)
    short = run("plan", "405b-q4", "--nodes", room, "--ctx", 1024).out.decode()
    check("more)" in short and len(short) < len(words), "a reason of each kind, without --all", short)


def costs(folder):
    """The example of the guide: 40,000 to buy against 5,000 a month are 8 months."""
    room = write(folder, FIVE + "costs: {capex: 40000, cloud-month: 5000, kwh-price: 0}\n")
    done = run("plan", "1b-q4", "--nodes", room)
    check_run("plan with costs", done, err="^$")
    check("after 8.0 months" in done.out.decode(), "8 months", done)
    bill = plan("1b-q4", "--nodes", room)["plans"][0]["cost"]
    check(bill["break_even_months"] == 8 and bill["capex"] == 40000, "8 months in JSON", bill)
    bill = plan("1b-q4", "--nodes", write(folder, FIVE))["plans"][0]["cost"]
    check(
        abs(bill["kwh_year"] - 8.76 * (115 * 0.25 + 11 * 0.75)) < 0.01 and bill["capex"] == 1999,
        "energy and price of the machine that is used",
        bill,
    )
    unknown = write(folder, "nodes: [pc-ddr5-2ch]\n")
    bill = plan("1b-q4", "--nodes", unknown)["plans"][0]["cost"]
    check(bill["kwh_year"] is None and bill["year"] is None, "no cost without numbers", bill)


def refused(folder):
    room = write(folder, "nodes: [{machine: mac-studio-m1-max, count: 3, name: mac}]\nlink: 10gbe\n")
    refuse(
        "what does not fit",
        run("plan", "405b-q4", "--nodes", room, "--ctx", 1024),
        r"405b-q4 does not fit: it needs 215 GiB .*the 3 nodes hold 163 GiB.*1 more node like mac-1",
    )
    value = plan("405b-q4", "--nodes", room, "--ctx", 1024)
    check(value["plans"] == [] and "215 GiB" in value["refusal"], "the refusal in JSON", value["refusal"])
    done = run("plan", "405b-q4", "--nodes", room, "--ctx", 1024, "--json")
    check(done.code == 1, "exit code of a refusal", done)
    for text, pattern in (
        ("nodes: [nothing]\n", r"room\.yaml:1:9: no machine 'nothing'"),
        ("nodes:\n  - {machine: pc-ddr5-2ch, ram: 1}\n", r"room\.yaml:2:\d+: unknown key 'ram'"),
        ("nodes: [pc-ddr5-2ch, pc-ddr4-2ch]\n", r"room\.yaml:1:8: several nodes need a link"),
        ("nodes: [\n", r"room\.yaml:\d+:\d+: "),
        ("link: 10gbe\n", "names no nodes"),
        ("", "names no nodes"),
        ("machines: [{name: x}]\n", "memory-gb is missing"),
    ):
        refuse(f"a file with {text!r}", run("plan", "1b-q4", "--nodes", write(folder, text)), pattern)
    refuse("no such file", run("plan", "1b-q4", "--nodes", folder / "none.yaml"), "none.yaml")
    refuse("no such model", run("plan", "no-such-model", "--nodes", write(folder, FIVE)), "no-such-model")
    refuse("a long prompt", run("plan", "1b-q4", "--ctx", 100, "-p", 200), "does not fit a context", 2)
    refuse("no model", run("plan"), "needs MODEL", 2)
    refuse("a number", run("plan", "1b-q4", "--streams", 0), "streams", 2)


def others(folder):
    listed = run("plan", "--list")
    check_run("plan --list", listed, err="^$")
    words = listed.out.decode()
    for name in ("mac-studio-m3-ultra", "10gbe", "r1-671b-q4_k_m"):
        check(name in words, f"--list has {name}", words)
    room = write(folder, "machines: [{name: own, read-gbs: 10, memory-gb: 8}]\nnodes: [own]\n"
                 "models: [{name: tiny, size-gb: 1, layers: 4, embedding: 256, heads: 4, kv-heads: 2, "
                 "head-size: 64, ff: 512, vocabulary: 1000}]\n")
    check("own" in run("plan", "--list", "--nodes", room).out.decode(), "--list has the file's")
    value = plan("tiny", "--nodes", room)
    check_places("a machine and a model of the file", value)
    check(value["plans"][0]["first_token_s"] is None, "no time to the first token without tflops", value)
    check(DEMO.is_file() and run("plan", DEMO).code == 0, "the demo model")
    shown = run("help", "plan").out.decode()
    check("machines.yaml" in shown and (ROOT / "docs/machines.yaml").is_file(), "the help names the library")


def main():
    with tempfile.TemporaryDirectory(prefix="consort-plan-") as name:
        folder = Path(name)
        this_machine(folder)
        architectures(folder)
        machines(folder)
        costs(folder)
        refused(folder)
        others(folder)
    return REPORT.end()


if __name__ == "__main__":
    sys.exit(main())
