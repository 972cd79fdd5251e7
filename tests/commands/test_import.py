"""The commands `import` and `export-weights`."""

from tiny import main_run


def test_weights_go_out_and_come_back_bit_for_bit(workdir, tmp_path, capsys):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    run = tmp_path / "run"
    main_run("export-weights", "--workdir", workdir, "--weights", out)
    assert capsys.readouterr().out == f"weights: {out}\n"
    config = workdir / "config.json"
    main_run("import", "--workdir", run, "--config", config, "--weights", out)
    assert "taken on trust: heads=1" in capsys.readouterr().out
    main_run("export-weights", "--workdir", run, "--weights", again)
    assert again.read_bytes() == out.read_bytes()
    main_run("sample", "--workdir", run, "--config.sampling.num=3")
    main_run("train", "--workdir", run, "--config.training.num_steps=2")
    assert (run / "samples" / "step_0000002.png").exists()
