"""Settings: where they come from, what is refused, and what `config` may show."""

from pathlib import Path

import pytest

from greengrader.config import PREFIX, SECRETS, Settings, load
from greengrader.errors import SettingsError
from greengrader.operate.installation import example

NO_DOTENV = Path("/nonexistent/.env")


def given(**settings: str) -> Settings:
    """The settings of an environment that holds these and nothing else."""
    return load({PREFIX + name.upper(): value for name, value in settings.items()}, NO_DOTENV)


def faults(**settings: str) -> str:
    with pytest.raises(SettingsError) as refused:
        given(**settings)
    return str(refused.value)


def dotenv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert given() == Settings()


def test_the_environment_goes_before_dotenv_and_dotenv_before_the_default(tmp_path: Path) -> None:
    path = dotenv(tmp_path, "GREENGRADER_CPUS=2\nGREENGRADER_TIMEOUT_S=90\nOTHER_PROGRAM=1\n")
    settings = load({"GREENGRADER_CPUS": "4", "HOME": "/root"}, path)
    assert (settings.cpus, settings.timeout_s, settings.pids) == (4.0, 90.0, Settings().pids)


def test_texts_become_the_types_of_the_fields() -> None:
    settings = given(network="true", memory_bytes="33554432", state_dir="/var/lib/greengrader", worker_name="w-1")
    assert (settings.network, settings.memory_bytes) == (True, 33554432)
    assert (settings.state_dir, settings.worker_name) == (Path("/var/lib/greengrader"), "w-1")


def test_an_empty_value_leaves_the_default() -> None:
    assert given(base_image="", worker_name="", cpus="") == Settings()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_stand_in_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("mqtt://hub:secret@broker\n")
    settings = given(**{f"{name}_file": str(tmp_path / "secret")})
    assert getattr(settings, name) == "mqtt://hub:secret@broker"


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    said = faults(database_url_file=str(tmp_path / "none"))
    assert "GREENGRADER_DATABASE_URL_FILE" in said and "cannot read" in said


def test_a_secret_of_the_environment_replaces_a_file_named_in_dotenv(tmp_path: Path) -> None:
    path = dotenv(tmp_path, f"GREENGRADER_MQTT_URL_FILE={tmp_path}/old\n")
    assert load({"GREENGRADER_MQTT_URL": "mqtt://new"}, path).mqtt_url == "mqtt://new"


def test_a_file_named_in_the_environment_replaces_a_secret_of_dotenv(tmp_path: Path) -> None:
    path = dotenv(tmp_path, "GREENGRADER_MQTT_URL=mqtt://old\n")
    (tmp_path / "new").write_text("mqtt://new")
    assert load({"GREENGRADER_MQTT_URL_FILE": str(tmp_path / "new")}, path).mqtt_url == "mqtt://new"


def test_only_secrets_have_a_file() -> None:
    assert "GREENGRADER_CPUS_FILE: unknown setting" in faults(cpus_file="/etc/cpus")


def test_an_unknown_key_is_refused_with_the_one_that_may_be_meant() -> None:
    assert "GREENGRADER_TIMOUT_S: unknown setting, is GREENGRADER_TIMEOUT_S meant?" in faults(timout_s="5")


def test_all_bad_keys_are_reported_at_once() -> None:
    said = faults(timout_s="5", cpus="many", memory_bytes="1", log_level="LOUD", worker_name="../x")
    for key in ("TIMOUT_S", "CPUS", "MEMORY_BYTES", "LOG_LEVEL", "WORKER_NAME"):
        assert PREFIX + key in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpus", "0"), ("cpus", "inf"), ("cpus", "nan"), ("slots", "0"), ("timeout_s", "-1"), ("pue", "0.9"),
     ("max_payload_bytes", "268435456"), ("network", "perhaps"), ("memory_bytes", "16777215")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(name: str, value: str) -> None:
    assert f"{PREFIX}{name.upper()}='{value}'" in faults(**{name: value})


def test_lists_and_mappings_are_written_as_json() -> None:
    settings = given(
        kube_tolerations='[{"key": "reserved", "operator": "Exists"}]', kube_node_selector='{"arch": "amd64"}'
    )
    assert list(settings.kube_tolerations) == [{"key": "reserved", "operator": "Exists"}]
    assert settings.kube_node_selector == {"arch": "amd64"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("kube_tolerations", "[", "Invalid JSON"),
        ("kube_tolerations", '{"key": "a"}', "valid list"),
        ("kube_tolerations", '[{"keys": "a"}]', "not keys"),
        ("kube_tolerations", '[{"operator": "exists"}]', "Exists or Equal; not exists"),
        ("kube_node_selector", '["a"]', "valid dictionary"),
        ("kube_node_selector", '{"a": "b c"}', "pattern"),
        ("kube_namespace", "My_Courses", "pattern"),
        ("kube_affinity", "wanted", "'preferred' or 'required'"),
        ("kube_cpu_request", "1.5", "less than or equal to 1"),
        ("rclone_remote", "greengrader-app", "pattern"),
        ("rclone_image", "two words", "pattern"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(name: str, value: str, said: str) -> None:
    assert said in faults(**{name: value})


def test_what_is_required_and_not_set_is_named_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match="GREENGRADER_DATABASE_URL is not set"):
        Settings().required("database_url")
    assert given(database_url="postgresql://h/d").required("database_url") == "postgresql://h/d"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://hub:secret@host:5432/db", "postgresql://hub:***@host:5432/db"),
        ("mqtts://hub:se/cr@et:secret@broker", "mqtts://hub:***@broker"),
        ("mqtt://broker:1883", "mqtt://broker:1883"),
        ("mqtt://hub@broker", "mqtt://hub@broker"),
        ("postgresql://host/db?user=hub&password=secret", "***"),
        ("host=db password=secret", "***"),
        ("host=db password=secret options=a://b", "***"),
    ],
)
def test_passwords_in_urls_are_masked(url: str, shown: str) -> None:
    assert given(database_url=url).masked()["GREENGRADER_DATABASE_URL"] == shown


def test_no_secret_shows_in_masked_settings() -> None:
    shown = given(submit_password="secret://x", mqtt_url="mqtt://hub:secret@b", submit_user="submit").masked()
    assert shown["GREENGRADER_SUBMIT_PASSWORD"] == "***"
    assert shown["GREENGRADER_SUBMIT_USER"] == "submit"
    assert "secret" not in str(shown)


def test_an_unset_secret_is_not_masked() -> None:
    assert Settings().masked()["GREENGRADER_DATABASE_URL"] == ""


def test_env_example_is_what_config_example_prints() -> None:
    kept = (Path(__file__).parents[2] / ".env.example").read_text()
    assert kept == example(), "run `python3 -m greengrader config --example > .env.example`"


def test_env_example_documents_every_setting() -> None:
    text = example()
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} has no description"
        assert f"# {field.description}\n" in text
        assert text.count(f"\n#{PREFIX}{name.upper()}=") == 1


def test_env_example_with_all_defaults_in_force_changes_nothing(tmp_path: Path) -> None:
    in_force = example().replace(f"\n#{PREFIX}", f"\n{PREFIX}")
    assert load({}, dotenv(tmp_path, in_force)) == Settings()
