"""Images explained as they are used: a picture for a classifier, a picture with a text."""

import base64
import io

import pytest
import torch
from byte_tokenizers import byte_level
from state import snapshot
from tiny_models import build, config_class, small_config

from captum_lrpx import AttnLRPx, DecoderLogits, Explanation, LRPx, Target, compare, explain, ledger
from captum_lrpx.cli import main
from captum_lrpx.explanation.pictures import picture_png, regions

Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")

SIZE, PATCH = 64, 8
METHODS = pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
CLASSIFIERS = ("convnext", "deit", "dinov2", "resnet", "siglip", "swin", "vit")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file with a bright square in a dark picture that is wider than high."""
    picture = Image.new("RGB", (80, 60), (20, 30, 60))
    picture.paste((250, 220, 40), (50, 10, 70, 30))
    path = tmp_path_factory.mktemp("images") / "square.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def processor():
    return transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def classifier(kind="vit", **options):
    config = {"vit": {"image_size": SIZE, "patch_size": PATCH}}.get(kind, {})
    return build(kind, "IMAGE_CLASSIFICATION", **config, **options)


@pytest.fixture(scope="module")
def vit():
    model = classifier(dtype=torch.float64, biases=False)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.zero_()
        model.vit.embeddings.cls_token.zero_()
    return model


@pytest.fixture(scope="module")
def llava():
    """A model of pictures and texts with its processor."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    mark = tokenizer.convert_tokens_to_ids("<image>")
    text = small_config(
        config_class("llama"), vocab_size=len(tokenizer), max_position_embeddings=128
    )
    model = build("llava", "IMAGE_TEXT_TO_TEXT", text_config=text, image_token_id=mark)
    vision = model.config.vision_config
    size = vision.image_size
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return model, processor


# Classifiers --------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_class_is_explained_by_patches(kind, method, path):
    model = classifier(kind)
    size = getattr(model.config, "image_size", 32)
    side = size if isinstance(size, int) else size[0]
    reader = transformers.ViTImageProcessorPil(size={"height": side, "width": side})
    before = snapshot(model)
    found = explain(model, reader, None, image=path, method=method)
    assert snapshot(model) == before
    assert found.certificate.holds
    pixels = reader(images=Image.open(path), return_tensors="pt")["pixel_values"]
    logits = model(pixels).logits[0].detach()
    assert found.value == pytest.approx(float(logits.max()), abs=1e-4)
    (standing,) = found.standings
    assert (standing.rank, standing.index) == (1, int(logits.argmax()))
    (part,) = found.parts
    rows, columns = part.grid
    assert rows == columns <= 16
    assert len(found.relevances) == rows * columns
    assert list(found.sums) == ["image"]


def test_patches_are_sums_of_pixels_and_all_of_them_the_value(vit, processor, path):
    found = explain(vit, processor, None, 1, image=path, method="lrpx")
    pixels = processor(images=Image.open(path), return_tensors="pt")["pixel_values"].double()
    relevance = LRPx(lambda x: vit(x).logits, vit).attribute(pixels, target=1)[0].sum(0)
    expected = relevance.reshape(8, PATCH, 8, PATCH).sum((1, 3)).flatten()
    torch.testing.assert_close(torch.tensor(found.relevances, dtype=torch.float64), expected)
    assert found.sum == pytest.approx(found.value, abs=1e-6)
    assert found.tokens[:2] == ("image 0,0", "image 0,1")
    assert found.tokens[-1] == "image 7,7"


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (7, 50), (224, 224)])
def test_an_image_of_any_size_is_at_most_sixteen_patches_wide(height, width):
    model = classifier("resnet")
    reader = transformers.ViTImageProcessorPil(size={"height": height, "width": width})
    found = explain(model, reader, None, 0, image=Image.new("RGB", (9, 9)), certify=False)
    rows, columns = found.parts[0].grid
    assert max(rows, columns) <= 16
    pixels = reader(images=Image.new("RGB", (9, 9)), return_tensors="pt")["pixel_values"]
    whole = AttnLRPx(lambda x: model(x).logits, model).attribute(pixels, target=0)
    assert found.sum == pytest.approx(float(whole.sum()), rel=1e-3, abs=1e-5)


def test_an_image_is_a_file_a_picture_or_an_array(vit, processor, path):
    opened = Image.open(path)
    array = torch.tensor(list(opened.getdata()), dtype=torch.uint8).reshape(60, 80, 3)
    answers = [
        explain(vit, processor, None, 0, image=image, certify=False).relevances
        for image in (path, str(path), opened, array.permute(2, 0, 1).numpy())
    ]
    assert all(each == answers[0] for each in answers)


def test_targets_of_a_classifier(vit, processor, path):
    def value(target):
        return explain(vit, processor, None, target, image=path, certify=False).value

    one, other = value(0), value(1)
    assert value("LABEL_1") == other
    assert value(Target(0, contrast=1)) == pytest.approx(one - other)
    assert value(Target(lambda rows: rows.sum(-1))) == pytest.approx(one + other)


# Image and text -----------------------------------------------------------------------------------


@METHODS
def test_the_next_token_is_explained_by_image_and_text(llava, path, method):
    model, processor = llava
    token = processor.tokenizer.convert_tokens_to_ids("Ġare")
    given = processor(images=Image.open(path), text="<image>\nthe keys to", return_tensors="pt")
    logits = model(**given).logits[0, -1].detach()  # the first call puts hooks of its own
    before = snapshot(model)
    found = explain(model, processor, "the keys to", " are", image=path, method=method)
    assert snapshot(model) == before
    assert found.certificate.holds
    assert list(found.sums) == ["image", "text"]
    assert found.labels[-3:] == ("the", "keys", "to")
    assert "<image>" not in found.tokens
    assert found.position == len(found.tokens) - 1
    assert found.value == pytest.approx(float(logits[token]), abs=1e-5)
    relevances = {"lrpx": LRPx, "attnlrpx": AttnLRPx}[method](
        lambda ids, pixels: model(input_ids=ids, pixel_values=pixels).logits[:, -1], model
    ).attribute((given["input_ids"], given["pixel_values"]), target=token)
    of_text, of_image = (float(each.sum()) for each in relevances)
    assert found.sums == pytest.approx({"image": of_image, "text": of_text}, abs=1e-5)
    assert min(map(abs, found.sums.values())) > 1e-3


def test_both_inputs_of_a_model_of_images_and_texts_close_the_ledger(llava, path):
    model, processor = llava
    given = processor(images=Image.open(path), text="<image>\nthe keys to", return_tensors="pt")
    method = AttnLRPx(
        lambda ids, pixels: model(input_ids=ids, pixel_values=pixels).logits[:, -1], model
    )
    assert ledger(method, (given["input_ids"], given["pixel_values"]), 7).closes(1e-4)


class Processor:
    """A processor of images and a tokenizer, as models that read text off images have them."""

    def __init__(self, images, tokenizer):
        self.image_processor, self.tokenizer = images, tokenizer


def test_the_next_token_is_explained_by_image_and_what_has_been_written(path):
    tokenizer = byte_level()
    tokens = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    decoder = {"model_type": "gpt2", "is_decoder": True, "add_cross_attention": True}
    model = build(
        "vision-encoder-decoder",
        "IMAGE_TEXT_TO_TEXT",
        encoder=small_config(config_class("vit")).to_dict(),
        decoder=small_config(config_class("gpt2"), vocab_size=len(tokenizer)).to_dict() | decoder,
        **tokens,
    )
    reader = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    both = Processor(reader, tokenizer)
    found = explain(model, both, None, " are", image=path, written="the keys")
    assert found.certificate.holds
    assert list(found.sums) == ["image", "written"]
    assert found.labels[-3:] == ("<|start|>", "the", "keys")
    pixels = reader(images=Image.open(path), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[0, *tokenizer("the keys").input_ids]])
    relevances = AttnLRPx(DecoderLogits(model)).attribute(
        (pixels, ids), target=tokenizer.convert_tokens_to_ids("Ġare")
    )
    assert list(found.sums.values()) == pytest.approx([float(each.sum()) for each in relevances])
    assert len(explain(model, both, None, image=path, written=2, certify=False).ids) == 16 + 3


class QwenProcessor:
    """As Qwen2-VL's, which needs torchvision for its videos."""

    def __init__(self, images, tokenizer):
        self.image_processor, self.tokenizer = images, tokenizer
        self.image_token = "<|image_pad|>"  # noqa: S105
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def __call__(self, images, text, return_tensors):
        given = dict(self.image_processor(images=images, return_tensors=return_tensors))
        count = int(given["image_grid_thw"].prod()) // self.image_processor.merge_size**2
        text = text.replace(self.image_token, count * self.image_token)
        given |= dict(self.tokenizer(text, return_tensors=return_tensors))
        return given | {"mm_token_type_ids": (given["input_ids"] == self.image_token_id).int()}


def test_rows_of_patches_are_put_back_into_the_image(path):
    tokenizer = byte_level()
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(marks), strict=True))
    text = type(build("qwen2_vl", "IMAGE_TEXT_TO_TEXT").config.text_config)
    model = build(
        "qwen2_vl",
        "IMAGE_TEXT_TO_TEXT",
        text_config=small_config(text, vocab_size=len(tokenizer), max_position_embeddings=128),
        **ids,
    )
    vision = model.config.vision_config
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        size={"shortest_edge": 256, "longest_edge": 4096},
    )
    processor = QwenProcessor(images, tokenizer)
    prompt = "<|vision_start|><|image_pad|><|vision_end|>the keys to"
    found = explain(model, processor, prompt, " are", image=path, method="lrpx")
    assert found.certificate.holds
    assert list(found.sums) == ["image", "text"]
    assert found.labels[-3:] == ("the", "keys", "to")
    (part, _) = found.parts
    rows, columns = part.grid
    seen = Image.open(io.BytesIO(base64.b64decode(part.picture)))
    assert seen.size == (columns * vision.patch_size, rows * vision.patch_size)
    assert seen.getpixel((seen.width * 60 // 80, seen.height * 20 // 60)) == (250, 220, 40)
    assert seen.getpixel((3, seen.height - 3)) == (20, 30, 60)

    given = processor(Image.open(path), prompt, "pt")
    ids, pixels = given.pop("input_ids"), given.pop("pixel_values")
    _, relevance = LRPx(
        lambda ids, pixels: model(input_ids=ids, pixel_values=pixels, **given).logits[:, -1], model
    ).attribute((ids, pixels), target=tokenizer.convert_tokens_to_ids("Ġare"))
    order = [  # squares of two by two patches, row by row
        (2 * row + inner // 2) * columns + 2 * column + inner % 2
        for row in range(rows // 2)
        for column in range(columns // 2)
        for inner in range(4)
    ]
    by_patch = torch.tensor(found.relevances[: part.stop])[order]
    torch.testing.assert_close(by_patch, relevance.sum(1), rtol=1e-3, atol=1e-5)


def test_pixels_of_unknown_places_are_refused(vit, path):
    class Flat:
        model_input_names = ("pixel_values",)

        def __call__(self, *_, **__):
            return {"pixel_values": torch.zeros(4, 12)}

    with pytest.raises(ValueError, match="unknown where in the image"):
        explain(vit, Flat(), None, image=path)


# Views --------------------------------------------------------------------------------------------


def test_a_record_keeps_the_image_as_the_model_sees_it(vit, processor, path):
    found = explain(vit, processor, None, 0, image=path)
    assert Explanation.from_json(found.to_json()) == found
    seen = Image.open(io.BytesIO(base64.b64decode(found.parts[0].picture)))
    assert seen.size == (SIZE, SIZE)
    assert seen.getpixel((48, 20)) == (250, 220, 40)  # 60, 20 before it was resized
    assert seen.getpixel((4, 60)) == (20, 30, 60)
    assert found.words().sums == found.fold_special().sums == found.sums


def test_pictures_are_red_and_blue_over_gray(vit, processor, path, tmp_path):
    found = explain(vit, processor, None, 0, image=path)
    order = sorted(range(64), key=found.relevances.__getitem__)
    file = tmp_path / "heat.png"
    for overlay in (True, False):
        found.to_png(file, overlay=overlay)
        drawn = Image.open(file).convert("RGB")
        assert min(drawn.size) >= 448 // 2
        cell = drawn.width // 8

        def color(at, drawn=drawn, cell=cell):
            return drawn.getpixel((at % 8 * cell + cell // 2, at // 8 * cell + cell // 2))

        low, high = color(order[0]), color(order[-1])
        assert (found.relevances[order[0]] < 0) == (low[2] > low[0])
        assert (found.relevances[order[-1]] > 0) == (high[0] > high[2])


def test_a_page_has_the_image_and_a_title_for_each_patch(llava, path):
    model, processor = llava
    found = explain(model, processor, "the <b> keys", image=path)
    page = found.to_html()
    picture = found.parts[0].picture
    assert f"data:image/png;base64,{picture}" in page
    assert page.count("<rect x=") == 2 * 16
    assert f"image 0,0 {found.relevances[0]:+.6g}" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert f"image {found.sums['image']:+.4f}   text" in page


def test_methods_side_by_side_draw_the_image_for_each(vit, processor, path):
    found = [
        explain(vit, processor, None, 0, image=path, method=method, certify=False)
        for method in ("lrpx", "attnlrpx")
    ]
    page = compare(found).to_html()
    assert page.count("<svg ") == 4
    assert "image 0,0" not in str(compare(found))  # sums and correlations are enough
    other = explain(vit, processor, None, 0, image=Image.new("RGB", (9, 9)), certify=False)
    with pytest.raises(ValueError, match="different images"):
        compare([found[0], other])
    with pytest.raises(ValueError, match="different images"):
        found[0] - other


def test_a_text_has_no_png(loaded, tmp_path):
    found = explain(*loaded["sva-gpt2"], "the keys", certify=False)
    assert not regions(found)
    with pytest.raises(ValueError, match="has no image or audio"):
        found.to_png(tmp_path / "heat.png")


def test_an_explanation_without_its_picture_is_drawn_on_white(vit, processor, path):
    found = explain(vit, processor, None, 0, image=path, certify=False)
    (region,) = regions(found)
    assert picture_png(found, region, overlay=False)


# Errors -------------------------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused(vit, processor, llava, loaded, path, tmp_path):
    model, both = llava
    gpt2, tokenizer = loaded["sva-gpt2"]
    (tmp_path / "no.png").write_text("no image")
    for error, message, arguments in [
        (ValueError, "reads an image: pass it", (vit, tokenizer, "the keys")),
        (ValueError, "reads an image: pass it", (model, both.tokenizer, "the keys")),
        (ValueError, "reads no images", (gpt2, tokenizer, "the keys", None, path)),
        (TypeError, "reads no images: pass the processor", (vit, tokenizer, None, None, path)),
        (ValueError, "reads images and no text", (vit, processor, "a cat", None, path)),
        (ValueError, "along with a text", (model, both, None, None, path)),
        (ValueError, "There is no image", (vit, processor, None, None, tmp_path / "cat.png")),
        (ValueError, "is no image that", (vit, processor, None, None, tmp_path / "no.png")),
        (ValueError, "There is no class 'cat'", (vit, processor, None, "cat", path)),
        (IndexError, "class 9", (vit, processor, None, 9, path)),
    ]:
        with pytest.raises(error, match=message):
            explain(*arguments[:4], image=arguments[4] if len(arguments) > 4 else None)
    with pytest.raises(ValueError, match="explains one text"):
        explain(vit, processor, None, image=path, method="integrated_gradients")
    with pytest.raises(ValueError, match="for an encoder-decoder"):
        explain(vit, processor, None, image=path, written="the")


def test_the_command(processor, path, tmp_path, capsys):
    model = classifier()
    for each in (model, processor):
        each.save_pretrained(tmp_path / "model")
    files = [tmp_path / f"found.{kind}" for kind in ("json", "png", "html")]
    record, picture, page = map(str, files)
    arguments = ["explain", "--image", str(path), "--model", str(tmp_path / "model")]
    assert not main([*arguments, "--json", record, "--png", picture, "--html", page])
    assert "image " in capsys.readouterr().out
    found = Explanation.from_json(files[0])
    assert found.relevances == pytest.approx(
        explain(model, processor, None, image=path).relevances, abs=1e-6
    )
    assert Image.open(picture).size == (448, 448)
    assert main(["explain", "the keys", *arguments[-2:]]) == 2
    assert "reads an image and no text: `captum-lrpx explain --image" in capsys.readouterr().err
    assert main(["explain"]) == 2
    assert main(["explain", "the keys", "--png", picture]) == 2
