"""Compile a bundle's programs in C++ and Kotlin, and let them fit pictures and decode outputs.

Every network has its own numbers in these files. So that a compiler starts once for many networks, each one's files are
put in a namespace or a package of their own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from deploy_prune.bundle import languages
from deploy_prune.bundle.meaning import Meaning

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
CPP = """
namespace NAME {
FILES
template <class T> void put(const T& value) { std::fwrite(&value, sizeof(value), 1, stdout); }
void answer(int count, char** arguments) {
  const Picture picture = pictures(arguments[2])[0];
  for (const std::uint8_t byte : fitted(picture)) put(byte);
  for (const float value : preprocess(picture)) put(value);
  Outputs outputs;
  for (int i = 3; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const float* values = reinterpret_cast<const float*>(bytes.data());
    outputs.emplace_back(values, values + bytes.size() / sizeof(float));
  }
  if (outputs.empty()) return;
  ANSWER
}
}
"""
CPP_ANSWERS = {
    "classes": "put(static_cast<float>(best(outputs)));",
    "pixels": "for (const std::uint8_t each : classes(outputs, picture.height, picture.width)) put(each);",
    "boxes": """for (const Box& box : boxes(outputs, picture.height, picture.width))
    for (const float x : {box.left, box.top, box.right, box.bottom, box.score, float(box.label)}) put(x);""",
}
KOTLIN = """package NAME
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
fun put(values: FloatArray) {
    val bytes = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
    for (value in values) bytes.putFloat(value)
    System.out.write(bytes.array())
}
fun answer(arguments: List<String>) {
    val bytes = File(arguments[0]).readBytes()
    val start = 10 + (bytes[8].toInt() and 0xff) + 256 * (bytes[9].toInt() and 0xff)
    val size = String(bytes, 10, start - 10).substringAfter("(").substringBefore(")").split(",").map { it.trim() }
    val picture = Picture(size[0].toInt(), size[1].toInt(), bytes.copyOfRange(start, bytes.size))
    System.out.write(fitted(picture))
    put(preprocess(picture))
    val outputs = arguments.drop(1).map { name ->
        val values = ByteBuffer.wrap(File(name).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        FloatArray(values.remaining()).also { values.get(it) }
    }
    if (outputs.isNotEmpty()) ANSWER
    System.out.flush()
}
"""
KOTLIN_ANSWERS = {
    "classes": "put(floatArrayOf(best(outputs).toFloat()))",
    "pixels": "System.out.write(classes(outputs, picture.height, picture.width))",
    "boxes": "for (b in boxes(outputs, picture.height, picture.width)) put(floatArrayOf(b.left, b.top, b.right, "
    "b.bottom, b.score, b.label.toFloat()))",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """What a bundle's files are filled with. ``shapes``: of the outputs for one picture; ``size``: [H, W]."""

    meaning: Meaning
    shapes: Sequence[Sequence[int]]
    size: Sequence[int]
    fit: str
    channels: int = 3
    layout: str = "NCHW"

    def text(self, template: str) -> str:
        """A file for this network."""
        height, width = self.size
        steps = (height * width, 1) if self.layout == "NCHW" else (1, self.channels)
        return languages.filled(template, {
            "artifact": "model", "colour": "bytes", "channels": self.channels, "height": height, "width": width,
            "mean": languages.numbers(MEAN[: self.channels]), "mean_f": languages.numbers(MEAN[: self.channels], "f"),
            "std": languages.numbers(STD[: self.channels]), "std_f": languages.numbers(STD[: self.channels], "f"),
            "axes": self.layout, "fit": self.fit, "pad": 114,
            "channel_step": steps[0], "pixel_step": steps[1],
            **languages.decoding_words(self.meaning, self.shapes),
        })  # fmt: skip


def cpp(folder: Path, networks: Mapping[str, Network]) -> list[str]:
    """The command that runs the C++ program of all networks; its first argument is a network's name."""
    parts, includes = [], {"#include <cstdio>"}
    for name, network in networks.items():
        lines = [
            line
            for file in ("preprocess.hpp", f"{network.meaning.kind}.hpp")
            for line in network.text(file).split("\n")
        ]
        includes |= {line for line in lines if line.startswith("#include <")}
        text = "\n".join(line for line in lines if not line.startswith("#"))
        made = CPP.replace("NAME", name).replace("ANSWER", CPP_ANSWERS[network.meaning.kind])
        parts.append(made.replace("FILES", text))
    choice = "".join(f'if (name == "{name}") {name}::answer(count, arguments);\n' for name in networks)
    main = f"int main(int count, char** arguments) {{\nconst std::string name = arguments[1];\n{choice}}}\n"
    (folder / "all.cpp").write_text("\n".join([*sorted(includes), *parts, main]))
    command = ["g++", *FLAGS, "all.cpp", "-o", "all"]
    subprocess.run(command, check=True, timeout=600, cwd=folder)
    return [str(folder / "all")]


def cpp_of_bundle(bundle: Path, kind: str, folder: Path) -> list[str]:
    """The command that runs the files of a bundle's cpp/, as they are."""
    text = CPP.replace("FILES", "").replace("ANSWER", CPP_ANSWERS[kind]).replace("NAME", "bundle")
    main = "int main(int count, char** arguments) { bundle::answer(count, arguments); }\n"
    (folder / "all.cpp").write_text(f'#include <cstdio>\n#include "decode.hpp"\n{text}{main}')
    command = ["g++", *FLAGS, "-I", str(bundle / "cpp"), "all.cpp", "-o", "all"]
    subprocess.run(command, check=True, timeout=120, cwd=folder)
    return [str(folder / "all"), kind]


def kotlin(folder: Path, networks: Mapping[str, Network]) -> list[str]:
    """The same of the Kotlin program."""
    choice = "".join(f'    if (arguments[0] == "{name}") {name}.answer(arguments.drop(1))\n' for name in networks)
    (folder / "Main.kt").write_text(f"fun main(arguments: Array<String>) {{\n{choice}}}\n")
    for name, network in networks.items():
        for file in ("preprocess.kt", f"{network.meaning.kind}.kt"):
            (folder / f"{name}_{file}").write_text(f"package {name}\n{network.text(file)}")
        answer = KOTLIN.replace("NAME", name).replace("ANSWER", KOTLIN_ANSWERS[network.meaning.kind])
        (folder / f"{name}_answer.kt").write_text(answer)
    sources = sorted(path.name for path in folder.glob("*.kt"))
    command = ["kotlinc", "-include-runtime", "-d", "all.jar", *sources]
    subprocess.run(command, check=True, timeout=600, cwd=folder, env=os.environ | {"JAVA_OPTS": "-Xmx1G"})
    return ["java", "-cp", str(folder / "all.jar"), "MainKt"]


def answered(
    command: Sequence[str], folder: Path, picture: numpy.ndarray, size: Sequence[int], outputs: Sequence[numpy.ndarray]
) -> tuple[numpy.ndarray, numpy.ndarray, bytes]:
    """Of a picture uint8 [h, w, C]: its bytes in the network's size, all numbers of its input, what outputs say."""
    numpy.save(folder / "picture.npy", picture)
    files = [folder / f"output_{number}.bin" for number in range(len(outputs))]
    for file, output in zip(files, outputs, strict=True):
        output.astype("<f4").tofile(file)
    given = [str(folder / "picture.npy"), *map(str, files)]
    told = subprocess.run([*command, *given], capture_output=True, check=True, timeout=60).stdout
    count = size[0] * size[1] * picture.shape[2]
    fitted = numpy.frombuffer(told, "uint8", count).reshape(*size, -1)
    return fitted, numpy.frombuffer(told, "<f4", count, count), told[5 * count :]


def boxes_of(raw: bytes) -> dict[str, Any]:
    """What a program has written of boxes."""
    table = numpy.frombuffer(raw, "<f4").reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].astype("int64")}
