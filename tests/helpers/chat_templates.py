"""Chat templates of well-known families, re-created in their form, with a byte-level tokenizer."""

from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = "What is 2 plus 3? It is 5. The answer is yes, no. <tool_call> {'name': 'find'} \n\n user"
TOOL_JSON = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_NO_BRANCH = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = system + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{{ (bos_token if loop.first else '') + c }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA31 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: 2023\n"
    + TOOL_JSON
    + "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|eom_id|>"
    "{% elif m.role in ('tool', 'ipython') %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if loop.last and system is defined %}[INST] {{ system }}\n\n{{ m['content'] }}[/INST]"
    "{% else %}[INST] {{ m['content'] }}[/INST]{% endif %}"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.\n"
    + TOOL_JSON
    + "<|im_end|>\n{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "<|im_start|>assistant\n<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{{ content.lstrip('\n') }}{% else %}<|im_start|>assistant\n{{ content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    "{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'tool' %}<|tool|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ content }}{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}\n"
    "{{ c.function.arguments | tojson }}<|/call|>{% endfor %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{% set c = m['content'].strip() %}"
    "<|START_OF_TURN_TOKEN|><|{{ 'CHATBOT' if m.role == 'assistant' else m.role | upper }}_TOKEN|>"
    "{{ c }}<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}Assistant: {{ m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role | capitalize }}:{% for p in m.content %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>Assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template with its tokens, and what its conversations may hold."""

    template: object
    special: tuple[str, ...]
    """Added tokens that are special."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not."""
    eos: str
    end: str
    """The text that ends a plain answer's turn."""
    bos: str | None = None
    tools: bool = False
    system: bool = True
    parts: bool = False
    own_prompt: bool = False
    """Whether a generation prompt may hold what the rendered exchange does not."""
    trims_offsets: bool = False


def _chatml(**more):
    given = {"special": ("<|im_start|>", "<|im_end|>"), "eos": "<|im_end|>", "end": "<|im_end|>"}
    return Family(**{**given, **more})


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
_LLAMA3 = {"eos": "<|end_of_text|>", "end": "<|eot_id|>", "bos": "<|bot|>"}
_SENTENCE = {"special": (), "eos": "</s>", "bos": "<s>"}

FAMILIES = {
    "llama-2": Family(template=LLAMA2, end=" </s>", trims_offsets=True, **_SENTENCE),
    "llama-3": Family(template=LLAMA3, special=_HEADERS, trims_offsets=True, **_LLAMA3),
    "llama-3.1 tools": Family(template=LLAMA31, special=_HEADERS, tools=True, **_LLAMA3),
    "chatml": _chatml(template=CHATML),
    "chatml other eos": _chatml(template=CHATML, eos="<|endoftext|>"),
    "chatml not special": _chatml(
        template=CHATML, special=(), plain=("<|im_start|>", "<|im_end|>"), eos="<|endoftext|>"
    ),
    "chatml no branch": _chatml(template=CHATML_NO_BRANCH),
    "mistral": Family(template=MISTRAL, end="</s>", system=False, **_SENTENCE),
    "mistral system": Family(template=MISTRAL_SYSTEM, end="</s>", own_prompt=True, **_SENTENCE),
    "gemma": Family(
        template=GEMMA, special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>", bos="<bos>",
        end="<end_of_turn>", system=False,
    ),
    "phi-3": Family(
        template=PHI3, special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>", end="<|end|>",
    ),
    "qwen-2.5": _chatml(
        template=QWEN25, plain=("<tool_call>", "</tool_call>"), eos="<|im_end|>", tools=True
    ),
    "qwen-3": _chatml(
        template=QWEN3, plain=("<tool_call>", "</tool_call>", "<think>", "</think>"), tools=True
    ),
    "r1": Family(
        template=R1, special=("<|User|>", "<|Assistant|>", "<|tool|>", "<|call|>", "<|/call|>"),
        plain=("<think>", "</think>"), eos="<|eos|>", bos="<|bos|>", end="<|eos|>", tools=True,
        own_prompt=True,
    ),
    "zephyr": Family(template=ZEPHYR, end="</s>", **_SENTENCE),
    "command-r": Family(
        template=COMMAND_R, eos="<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>",
        end="<|END_OF_TURN_TOKEN|>",
        special=("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>"),
    ),
    "deepseek": Family(
        template=DEEPSEEK, special=(), eos="<|eos|>", bos="<|bos|>", end="<|eos|>",
    ),
    "named": _chatml(template={"default": CHATML, "tool_use": QWEN25}, tools=True),
    "plain end": Family(
        template=(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        ),
        special=(), eos="<|eos|>", end="\n<|eos|>",
    ),
    "content parts": Family(
        template=PARTS, special=("<|im_start|>", "<end_of_utterance>"), eos="<end_of_utterance>",
        end="<end_of_utterance>", parts=True,
    ),
}  # fmt: skip
"""Name of a family → its form."""


@cache
def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the family's tokens and template; not to be changed."""
    family = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=family.trims_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS] * 5, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in family.special])
    tokenizer.add_tokens([AddedToken(text) for text in family.plain])
    given = {"eos_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given)
    found.chat_template = family.template
    return found
