"""The built-in demonstration, once in full and once with nothing left to do."""
import json
import time

from command_line import CommandLine


class Demo(CommandLine):
    def test_the_whole_way(self):
        first = self.succeeds("demo", "-o", "shop", timeout=900)
        self.assertRegex(first.stdout, r"model +recall@20 +ndcg@20 +cold recall@20 +s/epoch +peak memory")
        self.assertIn("made-up", first.stdout)
        start = time.time()
        second = self.succeeds("demo", "-o", "shop")
        self.assertEqual(second.stdout, first.stdout)
        self.assertLess(time.time() - start, 60)

        result = json.loads(self.succeeds("demo", "-o", "shop", "--json").stdout)
        rows = {row["model"]: row for row in result["table"]}
        self.assertEqual(list(rows), ["Popularity", "ItemKNN", "BPR", "LightGCN", "VBPR", "BM3"])
        for learned in ("LightGCN", "VBPR", "BM3"):
            self.assertGreater(rows[learned]["recall@20"], 1.5 * rows["Popularity"]["recall@20"])
        # 20 of 1,200 at random: .017.
        self.assertGreater(rows["VBPR"]["cold_recall@20"], 0.05)
        self.assertEqual(len(result["recommendations"]["users"]), 3)
        for user in result["recommendations"]["users"]:
            self.assertEqual(len(user["items"]), 5)
            self.assertTrue(all(item["title"] for item in user["items"]))

        self.fails(2, r"shop.*seed 999.*7", "demo", "-o", "shop", "--seed", "7")
        self.write("mine/letter.txt", "dear")
        self.fails(2, r"mine", "demo", "-o", "mine")
