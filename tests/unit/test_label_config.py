"""What a label config lets us predict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.controls import Choices, described, parse_label_config
from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.label_config import MAX_LENGTH

IMAGE = '<Image name="image" value="$photo"/>'
CAT_DOG = '<Choice value="cat"/><Choice value="dog"/>'


def config(attributes: str = "", choices: str = CAT_DOG, image: str = IMAGE) -> str:
    return f'<View>{image}<Choices name="kind" toName="image" {attributes}>{choices}</Choices></View>'


@pytest.mark.parametrize(
    ("attributes", "multiple"),
    [("", False), ('choice="single"', False), ('choice="single-radio"', False), ('choice="multiple"', True)],
)
def test_choices_on_an_image_are_what_is_predicted(attributes: str, multiple: bool) -> None:
    assert parse_label_config(config(attributes)) == Choices(
        "kind", "image", "photo", ("cat", "dog"), multiple
    )


def test_the_alias_is_the_class_because_results_store_it() -> None:
    control = parse_label_config(config(choices='<Choice value="Katze" alias="cat"/><Choice value="dog"/>'))
    assert control.classes == ("cat", "dog")


def test_choices_inside_of_views_count_once_each_and_inside_of_choices_not_at_all() -> None:
    nested = f'<View>{CAT_DOG}</View><Choice value="bird"><Choice value="owl"/></Choice><Choice value="cat"/>'
    assert parse_label_config(config(choices=nested)).classes == ("cat", "dog", "bird")


def test_a_list_of_images_is_an_image() -> None:
    assert parse_label_config(config(image='<Image name="image" valueList="$photos"/>')).image_key == "photos"


def test_the_first_usable_control_wins() -> None:
    xml = f"""<View><Text name="text" value="$text"/>{IMAGE}
    <Choices name="tone" toName="text">{CAT_DOG}</Choices>
    <Choices name="dynamic" toName="image" value="$options"/>
    <Choices name="good" toName="image"><Choice value="yes"/><Choice value="no"/></Choices>
    <Choices name="later" toName="image">{CAT_DOG}</Choices></View>"""
    assert parse_label_config(xml) == Choices("good", "image", "photo", ("yes", "no"))


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "empty"),
        ("<View>", "not XML"),
        ("<View/>", "no Choices"),
        (config(image='<Text name="image" value="$photo"/>'), "is no Image"),
        (config(image='<Image name="image" value="http://x/y.png"/>'), "not one"),
        (config(image='<Image name="image" value="$a/$b"/>'), "not one"),
        (config(image='<Image name="image"/>'), "not one"),
        (config('value="$options"', ""), "no fixed list"),
        (config('apiUrl="http://x"', ""), "no fixed list"),
        (config('perRegion="true"'), "per region"),
        (config('allowNested="true"', '<Choice value="a"><Choice value="b"/></Choice>'), "nested"),
        (config('allowNested="true"'), "allowNested"),
        (config('allownested="TRUE" choice="multiple"'), "allowNested"),
        (config('perItem="true"'), "per item"),
        (f'<View><Repeater on="$images">{config()[6:-7]}</Repeater></View>', "Repeater"),
        (config(image=f'<Repeater on="$images">{IMAGE}</Repeater>'), "is no Image"),
        (config(choices=""), "no Choice"),
        (config(choices='<Choice value="cat"/>'), "one Choice only"),
        (config(choices='<Choice value="cat"/><Choice value="cat"/>'), "one Choice only"),
        (f'<View>{IMAGE}<Choices toName="image">{CAT_DOG}</Choices></View>', "no name"),
        (f'<View>{IMAGE}<Choices name="kind">{CAT_DOG}</Choices></View>', "is no Image"),
        (config().replace("<View>", "<View>" + " " * MAX_LENGTH), "limit"),
    ],
)
def test_where_nothing_can_be_predicted_the_reason_is_told(xml: str, why: str) -> None:
    with pytest.raises(UnusableConfig, match=why) as caught:
        parse_label_config(xml)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "condition",
    [
        'visibleWhen="choice-selected" whenTagName="always" whenChoiceValue="yes"',
        'visibleWhen="region-selected"',
        'visiblewhen="choice-unselected"',
        'whenTagName="always"',
        'whenLabelValue="x"',
    ],
)
@pytest.mark.parametrize("around", ["view", "outer view", "choices"])
def test_a_question_of_every_image_goes_before_a_conditional_one(condition: str, around: str) -> None:
    own = condition if around == "choices" else ""
    asked = f'<Choices name="defect" toName="image" {own}>{CAT_DOG}</Choices>'
    if around != "choices":
        asked = f"<View {condition}>{asked}</View>"
    if around == "outer view":
        asked = asked.replace("><Choices", "><View><Choices").replace("</Choices>", "</Choices></View>")
    always = f'<Choices name="always" toName="image">{CAT_DOG}</Choices>'
    control = parse_label_config(f"<View>{IMAGE}{asked}{always}</View>")
    assert (control.from_name, control.others) == ("always", ("defect",))
    assert parse_label_config(f"<View>{IMAGE}{asked}</View>").from_name == "defect"  # better than nothing


def test_a_chosen_control_is_predicted_or_named_as_missing() -> None:
    second = (
        f'<Choices name="second" toName="image">{CAT_DOG}</Choices><TextArea name="note" toName="image"/>'
    )
    xml = config().replace("</View>", f"{second}</View>")
    control = parse_label_config(xml, "second")
    assert (control.from_name, control.others) == ("second", ("kind", "note"))
    assert described(control) == "predicts second (one of 2) from data.photo; left alone: kind, note"
    with pytest.raises(UnusableConfig, match=r"no Choices 'third'.*kind, second"):
        parse_label_config(xml, "third")
    with pytest.raises(UnusableConfig, match="per region"):
        parse_label_config(xml.replace('name="second"', 'name="second" perRegion="true"'), "second")


def test_of_several_images_that_of_the_primary_question_is_read() -> None:
    other = '<Image name="right" value="$second"/><Choices name="in-right" toName="right">'
    xml = config().replace("</View>", f"{other}{CAT_DOG}</Choices></View>")
    assert parse_label_config(xml).image_key == "photo"
    assert parse_label_config(xml, "in-right").image_key == "second"


def test_one_choice_of_a_multiple_choice_is_a_question() -> None:
    control = parse_label_config(config('choice="multiple"', '<Choice value="blurred"/>'))
    assert (control.classes, control.multiple) == (("blurred",), True)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE v [<!ENTITY f SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE v SYSTEM "http://127.0.0.1:1/x.dtd">',
        "<!DOCTYPE v>",
    ],
)
def test_document_types_are_refused(doctype: str) -> None:
    with pytest.raises(UnusableConfig, match="DOCTYPE"):
        parse_label_config(doctype + config())


@pytest.mark.parametrize("tag", ["View", "Choice", "Choices", "Image"])
def test_a_huge_nested_config_is_read_in_no_time(tag: str) -> None:
    opened = f'<{tag} name="image" toName="image" value="$x">'
    count = 400_000 // len(opened)
    deep = opened * count + f"</{tag}>" * count
    assert parse_label_config(config(choices=CAT_DOG + deep)).classes[:2] == ("cat", "dog")
    with pytest.raises(UnusableConfig):
        parse_label_config(deep)


def test_an_encoding_declaration_is_fine() -> None:
    declared = '<?xml version="1.0" encoding="utf-16"?>' + config(choices='<Choice value="größe"/>' + CAT_DOG)
    assert parse_label_config(declared).classes == ("größe", "cat", "dog")


pieces = st.sampled_from(
    ["<View>", "</View>", IMAGE, '<Choices name="kind" toName="image">', "</Choices>", CAT_DOG, "<!-- ",
     " -->", "<?x ?>", "<!DOCTYPE v>", "&lt;", "&x;", "<![CDATA[", "]]>", 'choice="multiple"', "\x00",
     "\ud800", "<a:b/>", "<x xmlns='y'/>"]
)  # fmt: skip


@given(
    st.text()
    | st.lists(pieces, max_size=12).map("".join)
    | st.lists(pieces).map(lambda p: config(choices="".join(p)))
)
def test_any_text_is_a_spec_or_unusable(xml: str) -> None:
    try:
        control = parse_label_config(xml)
    except UnusableConfig:
        return
    assert control.from_name
    assert control.image_key
    assert control.classes
    assert len(set(control.classes)) == len(control.classes)
