"""The server: Flower's own rounds, with fedwinnow's weighting and merging of LoRA factors."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import AdapterSection, PluginSection
from fedwinnow.curation.protocol.flower_records import array_record
from fedwinnow.server.strategy import CurationStrategy
from lora_app.task import start

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds and print the loss of each."""
    words = context.run_config
    config = RunConfig(
        adapter=AdapterSection(rank=int(words["rank"]), alpha=float(words["alpha"])),
        merging=PluginSection(name=str(words["merging"])),
    )
    strategy = CurationStrategy(config)
    arrays = array_record(start(int(words["rank"])))
    result = strategy.start(grid, initial_arrays=arrays, num_rounds=int(words["rounds"]))
    for number, metrics in sorted(result.evaluate_metrics_clientapp.items()):
        print(f"round {number}: loss {metrics['loss']:.4f}")
    context.state["arrays"] = result.arrays
