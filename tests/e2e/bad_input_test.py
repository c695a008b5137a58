"""Bad input ends in one line that helps, the right exit code, and nothing half-written."""
import glob
import json
import os
import shutil
import struct

from command_line import CommandLine

GOOD = "user_id\titem_id\ttimestamp\n" + "".join(
    f"u{u}\ti{(u * 3 + k * 7) % 20}\t{1000 + 37 * u + k}\n" for u in range(12) for k in range(6))


def npy(rows, width, numbers, dtype="<f4", cut=0):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    header += " " * (64 - (10 + len(header) + 1) % 64) + "\n"
    data = b"".join(struct.pack("<f", x) for x in numbers)
    whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data
    return whole[:len(whole) - cut]


class BadInteractions(CommandLine):
    """import: exit 3 and no folder."""

    def refused(self, content, words, *flags, name="events.tsv", code=3):
        self.write(name, content)
        done = self.fails(code, words, "import", name, "-o", "out", *flags)
        self.assertEqual(sorted(os.listdir(self.folder)), sorted({name.split("/")[0]}), str(done))

    def test_missing_file(self):
        self.fails(3, r"nowhere\.tsv", "import", "nowhere.tsv", "-o", "out")
        self.assertEqual(os.listdir(self.folder), [])

    def test_empty_file(self):
        self.refused("", r"events\.tsv.*empty")

    def test_binary_file(self):
        self.refused(bytes(range(256)) * 8, r"events\.tsv.*binary")

    def test_wrong_delimiter(self):
        self.refused(GOOD, r"only one column found with the delimiter pipe; leave --delimiter out", "--delimiter", "pipe")

    def test_ragged_row_names_its_line(self):
        lines = GOOD.splitlines()
        lines[4] = "u9"
        self.refused("\n".join(lines) + "\n", r"events\.tsv:5:")

    def test_id_that_is_not_utf8(self):
        self.refused(GOOD.encode() + b"u\xff\ti1\t5\n", r"events\.tsv:74:.*UTF-8")

    def test_id_with_a_tab(self):
        rows = GOOD.replace("\t", ",") + '"u\t1",i1,5\n'
        self.refused(rows, r"events\.csv:74:.*tab", name="events.csv")

    def test_bad_lines_are_tolerated_and_counted_on_request(self):
        self.write("events.tsv", GOOD + "u9\n")
        self.succeeds("import", "events.tsv", "-o", "out", "--max-bad-lines", "1")
        self.assertIn('"bad_lines": 1', self.read("out", "import_report.json"))

    def test_no_train_rows(self):
        rows = "user_id\titem_id\tsplit\nu1\ti1\ttest\nu2\ti2\tvalid\n"
        self.refused(rows, r"train")

    def test_everything_filtered_away(self):
        self.refused(GOOD, r"core", "--core", "50")

    def test_leave_one_out_without_order(self):
        rows = "\n".join(line.rsplit("\t", 1)[0] for line in GOOD.splitlines()) + "\n"
        self.refused(rows, r"leave-one-out.*(time|order)", "--split", "leave-one-out")

    def test_temporal_split_without_times(self):
        rows = "\n".join(line.rsplit("\t", 1)[0] for line in GOOD.splitlines()) + "\n"
        self.refused(rows, r"temporal-global.*time", "--split", "temporal-global")

    def test_unknown_split_names_the_nearest(self):
        self.refused(GOOD, r"leave-one-ot.*leave-one-out", "--split", "leave-one-ot", code=2)

    def test_pickle_is_refused_with_the_way_out(self):
        self.refused(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", r"pickle",
                     name="data.pkl")

    def test_output_that_cannot_be_written(self):
        self.write("events.tsv", GOOD)
        self.write("file", "x")
        self.succeeds("import", "events.tsv", "-o", "data")
        self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run")
        before = sorted(os.listdir(self.folder))
        for place, why in (("file/out", r"file is no folder"), ("/proc/out", r"/proc: ")):
            for call in (["import", "events.tsv"], ["train", "-m", "Popularity", "-d", "data"],
                         ["recommend", "run", "--users", "u1"], ["report", "run"],
                         ["evaluate", "run", "--per-user"]):
                self.fails(2, rf"cannot write .*{place}: .*{why}.*; choose another -o", *call, "-o", place)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_users_and_items_only_in_test_are_counted(self):
        rows = "".join(f"u{u}\ti{i}\ttrain\n" for u in range(4) for i in range(4))
        self.write("events.tsv", f"user_id\titem_id\tsplit\n{rows}new\tnever\ttest\nu1\tnever\tvalid\n")
        done = self.succeeds("import", "events.tsv", "-o", "data")
        self.assertRegex(done.stdout, r"not in train +1 users and 1 items held out only")
        self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run")
        self.assertEqual(self.read_json("run", "results.json")["audit"]["cold_users"], 1)

    def test_a_rating_that_is_no_number(self):
        for rating in ("nan", "inf", "good"):
            self.refused(f"user,item,rating\nu1,i1,4\nu1,i2,{rating}\n", rf"events\.tsv:3:\d+: rating '{rating}'")

    def test_several_event_types_are_listed(self):
        rows = "user_id\titem_id\tevent\nu1\ti1\tclick\nu1\ti2\tview\nu2\ti1\tview\n"
        self.refused(rows, r"--positive.*click \(1.*view \(2", code=2)


class BadFeatures(CommandLine):
    """import with a feature file: exit 3 and no folder."""

    def refused(self, feature, ids, words, name="image_feat.npy"):
        self.write("in/events.tsv", GOOD)
        self.write(f"in/{name}", feature)
        if ids is not None:
            self.write("in/image_feat.ids", ids)
        self.fails(3, words, "import", "in/events.tsv", "-o", "out")
        self.assertEqual(os.listdir(self.folder), ["in"])

    def test_rows_that_do_not_match_the_ids(self):
        self.refused(npy(3, 2, range(6)), "i0\ni1\n", r"image_feat.*(3.*2|2.*3)")

    def test_nan(self):
        self.refused(npy(2, 2, [0, 1, float("nan"), 3]), "i0\ni1\n", r"image_feat.*(NaN|nan)")

    def test_infinity(self):
        self.refused(npy(2, 2, [0, 1, float("inf"), 3]), "i0\ni1\n", r"image_feat.*inf")

    def test_zero_width(self):
        self.refused(npy(2, 0, []), "i0\ni1\n", r"image_feat.*(width|0)")

    def test_duplicate_ids(self):
        self.refused(npy(2, 2, range(4)), "i0\ni0\n", r"image_feat\.ids.*i0")

    def test_truncated_npy(self):
        self.refused(npy(2, 2, range(4), cut=3), "i0\ni1\n", r"image_feat\.npy")

    def test_truncated_safetensors(self):
        head = json.dumps({"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
        self.refused(struct.pack("<Q", len(head)) + head + b"\0" * 9, "i0\ni1\n",
                     r"image_feat\.safetensors", name="image_feat.safetensors")

    def test_unknown_modality_of_a_dataset(self):
        self.write("in/events.tsv", GOOD)
        self.write("in/image_feat.npy", npy(20, 2, range(40)))
        self.write("in/image_feat.ids", "".join(f"i{i}\n" for i in range(20)))
        self.succeeds("import", "in/events.tsv", "-o", "data")
        self.fails(2, r"imagee.*image", "train", "-m", "VBPR", "-d", "data", "-o", "run",
                   "--modalities", "imagee")
        self.assertFalse(os.path.exists(self.path("run")))


class BadTraining(CommandLine):
    """train: exit 2 or 3, and no run folder."""

    def setUp(self):
        super().setUp()
        self.write("in/events.tsv", GOOD)
        self.succeeds("import", "in/events.tsv", "-o", "data", "--split", "temporal-user")

    def refused(self, code, words, *arguments):
        before = self.tree()
        self.fails(code, words, "train", "-d", "data", "-o", "run", *arguments)
        self.assertEqual(self.tree(), before)

    def test_unknown_model(self):
        self.refused(2, r"^no model 'lightgnc' \(did you mean 'LightGCN'\?\)", "-m", "lightgnc")

    def test_unknown_setting(self):
        self.refused(2, r"'n_layer' \(did you mean 'n_layers'\?\)", "-m", "LightGCN", "--n_layer=2")

    def test_setting_of_another_toolkit(self):
        self.refused(2, r"training_neg_sample_num.*n_negatives", "-m", "BPR",
                     "--training_neg_sample_num=2")

    def test_habits_of_other_toolkits_are_explained(self):
        for name, words in (("learner", r"no setting 'learner': the optimiser is Adam; leave it out"),
                            ("filter_out_cod_start_users", r"the protocol says who is averaged"),
                            ("latent_dim", r"here it is 'embedding_size'"),
                            ("MAX_ITEM_LIST_LENGTH", r"here it is 'max_length'")):
            self.fails(2, words, "train", "-m", "BPR", "-d", "data", f"--{name}=1")

    def test_metric_that_cannot_select(self):
        call = ["train", "-m", "BPR", "-d", "data", "--epochs", "1", "-o", "new", "--valid-metric"]
        self.fails(2, r"valid_metric 'ndcg' needs a K, like ndcg@20", *call, "ndcg")
        for name in ("gini@5", "average_popularity@5"):
            self.fails(2, rf"valid_metric '{name}' cannot select: more of it is not better", *call, name)
        self.assertFalse(os.path.exists(self.path("new")))
        for name in ("auc", "mrr", "map@5"):
            self.succeeds(*call, name)

    def test_command_lines_that_do_not_parse(self):
        self.fails(2, r"^--rows: wanted a number, got 'x'; see 'tessera inspect --help'", "inspect", "data",
                   "--rows", "x")
        self.fails(2, r"^--resume: wanted a value after it; see", "train", "--resume")
        self.fails(2, r"^path is missing; see 'tessera inspect --help'", "inspect")

    def test_value_out_of_range(self):
        self.refused(2, r"^LightGCN\.embedding_size must be at least 1, got 0", "-m", "LightGCN",
                     "--embedding_size=0")

    def test_value_of_the_wrong_kind(self):
        self.refused(2, r"embedding_size: expected a value like 64, got 2\.7", "-m", "LightGCN",
                     "--embedding_size=2.7")

    def test_unknown_metric(self):
        self.refused(2, r"'recal@20' \(did you mean 'recall'", "-m", "Popularity", "--valid-metric", "recal@20")

    def test_unknown_protocol(self):
        self.refused(2, r"strikt.*strict", "-m", "Popularity", "--protocol", "strikt")

    def test_topk_larger_than_the_catalogue(self):
        self.refused(2, r"(500.*20 items|20 items.*500)", "-m", "Popularity", "--topk", "500")

    def test_model_that_needs_features(self):
        self.refused(3, r"VBPR.*feature", "-m", "VBPR")

    def test_missing_dataset(self):
        self.fails(3, r"nowhere", "train", "-m", "BPR", "-d", "nowhere", "-o", "run")
        self.assertFalse(os.path.exists(self.path("run")))

    def test_output_with_other_files_in_it(self):
        self.write("mine/letter.txt", "dear")
        self.fails(2, r"mine", "train", "-m", "Popularity", "-d", "data", "-o", "mine")
        self.assertEqual(self.read("mine", "letter.txt"), "dear")

    def test_settings_file_with_a_mistake_names_its_line(self):
        self.write("a.yaml", "n_layers: 2\nn_layrs: 3\n")
        self.refused(2, r"n_layrs.*n_layers", "-m", "LightGCN", "-c", "a.yaml")
        self.write("b.yaml", "n_layers: [1\n")
        self.refused(3, r"b\.yaml:\d+:\d+", "-m", "LightGCN", "-c", "b.yaml")

    def test_unknown_verb_and_flag(self):
        self.fails(2, r"evaluate", "eval", "run")
        self.fails(2, r"--splt.*--split", "import", "in/events.tsv", "-o", "x", "--splt", "random")


class Damage(CommandLine):
    """A folder that was damaged after it was written is refused when it is read."""

    def setUp(self):
        super().setUp()
        self.write("in/events.tsv", GOOD)
        self.succeeds("import", "in/events.tsv", "-o", "data", "--split", "temporal-user")
        self.succeeds("train", "-m", "BPR", "-d", "data", "-o", "run", "--epochs", "2")

    def cut(self, *parts):
        place = self.path(*parts)
        with open(place, "rb") as file:
            content = file.read()
        with open(place, "wb") as file:
            file.write(content[:len(content) * 2 // 3])
        return os.path.basename(place)

    def test_truncated_bundle(self):
        name = self.cut("run", "model", "weights.safetensors")
        self.fails(3, name, "recommend", "run/model", "--users", "u1")

    def test_bundle_with_another_hash(self):
        place = self.path("run", "model", "weights.safetensors")
        with open(place, "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\x01\x02\x03\x04")
        self.fails(3, r"weights\.safetensors.*(sha256|hash)", "recommend", "run/model", "--users", "u1")

    def test_bundle_without_its_description(self):
        os.remove(self.path("run", "model", "model.json"))
        self.fails(3, r"model", "recommend", "run/model", "--users", "u1")

    def test_truncated_checkpoint(self):
        self.cut("run", "checkpoints", "best", "weights.safetensors")
        self.fails(3, r"weights\.safetensors", "evaluate", "run")

    def test_truncated_dataset(self):
        for name in ("interactions.tsv", "item_map.tsv", "dataset.json"):
            shutil.rmtree(self.path("copy"), ignore_errors=True)
            shutil.copytree(self.path("data"), self.path("copy"))
            self.cut("copy", name)
            self.fails(3, name.replace(".", r"\."), "train", "-m", "BPR", "-d", "copy", "-o", "new")
            self.assertEqual(glob.glob(self.path("new*")), [])

    def test_unknown_user_and_item(self):
        self.fails(2, r"'u99'", "recommend", "run/model", "--users", "u99")
        self.fails(2, r"'i99'", "similar", "run/model", "i99")

    def test_flags_that_mean_nothing_to_a_bundle(self):
        for verb, more in (("recommend", ["--users", "u1"]), ("similar", ["i1"])):
            self.fails(2, r"here it is -n", verb, "run/model", *more, "--topk", "5")
            self.fails(2, rf"{verb} has no flag '--protocol'", verb, "run/model", *more, "--protocol", "mmrec")
            self.fails(2, r"answers from a bundle", verb, "run/model", *more, "-d", "data")
            self.fails(2, r"cuda:0.*not available", verb, "run/model", *more, "--device", "cuda:0")
            self.fails(2, r"-n must be from 1 to", verb, "run/model", *more, "-n", "0")
            self.fails(2, r"-n", verb, "run/model", *more, "-n", "ten")
            self.succeeds(verb, "run/model", *more, "-j", "1")

    def test_a_list_is_no_longer_than_the_catalogue(self):
        self.write("few.tsv", "u1\ta\nu1\tb\nu1\tc\nu2\ta\nu2\tb\nu2\tc\n")
        self.succeeds("import", "few.tsv", "-o", "few")
        self.succeeds("train", "-m", "Popularity", "-d", "few", "-o", "few_run")
        done = self.succeeds("recommend", "few_run", "--users", "u1", "--no-filter-seen")
        self.assertEqual(len(done.stdout.splitlines()), 1 + 3)

    def test_unknown_fields_are_ignored(self):
        about = self.read_json("run", "model", "model.json")
        about["from_the_future"] = {"x": [1, 2]}
        self.write("run/model/model.json", json.dumps(about))
        self.write("run/model/future.bin", b"\0\1")
        self.succeeds("recommend", "run/model", "--users", "u1", "-n", "3")
