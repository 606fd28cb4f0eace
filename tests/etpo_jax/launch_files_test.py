"""The flagfiles are found in a checkout and in an installed package."""

from etpo_jax import launch_files


def test_the_folder_of_a_checkout_holds_the_demonstration():
    assert (launch_files.launch_folder() / "tiny.flags").is_file()


def test_an_installed_package_holds_the_folder_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(launch_files, "__file__", str(tmp_path / "etpo_jax" / "launch_files.py"))
    assert launch_files.launch_folder() == tmp_path / "launch"
    (tmp_path / "etpo_jax" / "launch").mkdir(parents=True)
    assert launch_files.launch_folder() == tmp_path / "etpo_jax" / "launch"
