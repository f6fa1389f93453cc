"""A client: any model whose LoRA factors travel under PEFT's names; here one linear layer."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.curation.protocol.flower_records import array_record, read_arrays
from lora_app.task import data_of, descend, loss_of

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A few steps on the client's own data."""
    data = data_of(int(context.node_config["partition-id"]))
    arrays = read_arrays(message.content.array_records["arrays"])
    trained = descend(arrays, data, float(context.run_config["alpha"]))
    metrics = MetricRecord({"num-examples": len(data[0])})
    return Message(
        RecordDict({"arrays": array_record(trained), "metrics": metrics}), reply_to=message
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss of the merged factors on the client's own data."""
    data = data_of(int(context.node_config["partition-id"]))
    arrays = read_arrays(message.content.array_records["arrays"])
    loss = loss_of(arrays, data, float(context.run_config["alpha"]))
    metrics = MetricRecord({"num-examples": len(data[0]), "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
