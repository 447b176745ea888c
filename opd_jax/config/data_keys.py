"""The keys of what the student reads: files, fields, prompts, images and the verifier; see keys.py."""

from typing import Any

DATA: dict[str, tuple[Any, str, str]] = {
  "data.path": (
    "task:chain",
    "a file (JSONL, JSON, CSV, Parquet, Arrow), a saved data set, hub:NAME:SPLIT, or task:NAME",
    "path",
  ),
  "data.paths": ((), "several sources, instead of `data.path`, each as that", "paths"),
  "data.weights": (
    (),
    "how often each of data.paths is drawn from, in proportion; (): all prompts equally often",
    "numbers in (0, 10**6]",
  ),
  "data.prompt_field": ("prompt", "a string, or a list of chat messages", "text"),
  "data.answer_field": (
    "answer",
    "of what a verifier compares with; dots lead into objects: reward_model.ground_truth",
    "text",
  ),
  "data.solution_field": ("", "of a file, with rollout.by=data: the response that is learned", "text"),
  "data.domain_field": ("", "of a file: a problem's domain, by which evaluations count too", "text"),
  "data.canonical_field": (
    "",
    'of conversations: the prompt that says everything at once; "": all turns as one',
    "text",
  ),
  "data.teacher_field": (
    "",
    "of a file: the example's teacher, as an index into `teachers` or a directory's last name",
    "text",
  ),
  "data.image_field": (
    "",
    "of a file: a prompt's image, a path from the file's folder, the bytes or a list of such; shown where the prompt says <image>, else first",
    "text",
  ),
  "data.box_field": (
    "",
    "of a file: the region of the first image that a question is about, [left, top, right, bottom] in pixels, or a list of such",
    "text",
  ),
  "data.draw_boxes": (
    "training",
    "where the student's images have their boxes drawn in red: in training, in evaluations too (all), or nowhere (none)",
    "one of training, all, none",
  ),
  "data.max_pixels": (0, "an image of more is shrunk; 0: as the model's preprocessor_config.json says", "[0, 10**8]"),
  "data.min_pixels": (0, "an image of fewer is enlarged; 0: likewise", "[0, 10**8]"),
  "data.decode_images": (
    True,
    "look at all of every image before the run, and not at its header alone; a bad one is a bad line",
    "True or False",
  ),
  "data.image_cache": (2.0, "GiB of host memory for encoded images, of each model that sees them", "[0, 10**6]"),
  "data.max_prompt": (1024, "tokens", "[1, 2**24]"),
  "data.on_bad_line": (
    "refuse",
    "refuse, skip (with a count), or truncate (too long prompts lose their beginning)",
    "one of refuse, skip, truncate",
  ),
  "data.widths": (
    1.5,
    "largest step between two compiled prompt widths, so that at most 1/3 is padding; 0: one width",
    "0 or (1, 1000]",
  ),
  "data.chat_template": (
    True,
    "wrap prompts in the student's chat template where its tokenizer has one",
    "True or False",
  ),
  "data.system": ("", "a system message put before every prompt, with a chat template only", "text"),
  "data.suffix": (
    "",
    "text put behind what the user says last, on a line of its own unless it begins with white space",
    "text",
  ),
  "data.teacher_system": (
    "same",
    'the system message of teachers\' prompts; same: data.system; "": none',
    "text",
  ),
  "data.teacher_suffix": ("same", 'the suffix of teachers\' prompts; same: data.suffix; "": none', "text"),
  "data.template_args": (
    {},
    "arguments of the chat template, e.g. enable_thinking: True, numbers, text",
    "object",
  ),
  "data.teacher_template_args": (
    {},
    "the same for teachers' prompts, besides",
    "object",
  ),
  "data.verifier": (
    "auto",
    "auto (the task's own; gsm8k for files), a name in opd_jax/tasks, or your function: my_module:verify, FILE.py:verify",
    "text",
  ),
  "data.answer_pattern": (
    "",
    "verifier regex: finds the answer in a response; the last match's first group, or all of it",
    "text",
  ),
}
