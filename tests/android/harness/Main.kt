package com.example.routing

import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.Path
import java.util.Base64

/**
 * Runs the app's reading of a file, its preprocessing and its routing.
 *
 * The signatures are run by the process that started this one: a line "run" with arrays asks for
 * them, and a line of arrays is the answer. A request is a line: pixels, largest width, threshold.
 */
fun main(arguments: Array<String>) {
    val file = try {
        RoutedFile.read(ByteBuffer.wrap(Files.readAllBytes(Path.of(arguments[0]))))
    } catch (error: IllegalArgumentException) {
        println("refused ${error.message}")
        return
    }
    val signatures = RemoteSignatures()
    val model =
        if (file.layout == "staged") StagedModel(file, signatures) else GraphModel(file, signatures)
    val tensor = ImageTensor(file)
    println("opened ${file.height} ${file.width} ${file.routes} ${file.labels} ${file.split} ${file.cropFraction}")
    while (true) {
        val (pixels, width, threshold) = readlnOrNull()?.split(" ") ?: return
        val image = tensor.of(arrayOf(pixels) as IntArray)
        val result = model.classify(image, width.toInt(), threshold.toFloatOrNull())
        println("result ${textOf(result.output)} ${textOf(result.path)} ${result.usedThreshold}")
    }
}

private class RemoteSignatures : Signatures {
    override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> {
        println("run $signature ${inputs.map { "${it.key}=${textOf(it.value)}" }.joinToString(" ")}")
        return readln().split(" ").associate { entry ->
            val (name, text) = entry.split("=", limit = 2)
            name to arrayOf(text)
        }
    }

    override fun close() = Unit
}

private fun textOf(array: Any): String {
    val bytes = when (array) {
        is FloatArray -> ByteBuffer.allocate(4 * array.size).apply { asFloatBuffer().put(array) }
        is IntArray -> ByteBuffer.allocate(4 * array.size).apply { asIntBuffer().put(array) }
        is ByteArray -> ByteBuffer.wrap(array)
        // What is only handed on comes as a text and goes as one.
        else -> return array as String
    }
    val kind = mapOf("FloatArray" to "f", "IntArray" to "i", "ByteArray" to "b")
    return kind[array.javaClass.kotlin.simpleName] + ":" +
        Base64.getEncoder().encodeToString(bytes.array())
}

private fun arrayOf(text: String): Any {
    val (kind, data) = text.split(":", limit = 2)
    val bytes = { ByteBuffer.wrap(Base64.getDecoder().decode(data)) }
    return when (kind) {
        "f" -> bytes().asFloatBuffer().let { FloatArray(it.remaining()).also(it::get) }
        "i" -> bytes().asIntBuffer().let { IntArray(it.remaining()).also(it::get) }
        else -> text
    }
}
