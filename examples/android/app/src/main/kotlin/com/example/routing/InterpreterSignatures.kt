package com.example.routing

import java.nio.ByteBuffer
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/** Signatures on LiteRT's interpreter, on the CPU with XNNPACK. */
class InterpreterSignatures(
    model: ByteBuffer,
    private val file: RoutedFile,
    threads: Int,
) : Signatures {
    private val interpreter =
        Interpreter(model, Interpreter.Options().setNumThreads(threads).setUseXNNPACK(true))

    // Made once for each signature and name.
    private val inputBuffers = mutableMapOf<Pair<String, String>, ByteBuffer>()
    private val outputBuffers = mutableMapOf<Pair<String, String>, ByteBuffer>()

    override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> {
        val given = inputs.mapValues { (name, value) -> asBuffer(signature, name, value) }
        val outputs = file.signatures.getValue(signature).outputs.associateWith { name ->
            outputBuffers.getOrPut(signature to name) {
                newBuffer(interpreter.getOutputTensorFromSignature(name, signature).numBytes())
            }
        }
        outputs.values.forEach { it.rewind() }
        interpreter.runSignature(given, outputs, signature)
        return outputs.mapValues { (name, buffer) -> asArray(signature, name, buffer) }
    }

    override fun close() = interpreter.close()

    private fun asBuffer(signature: String, name: String, value: Any): ByteBuffer {
        if (value is ByteBuffer) return value.apply { rewind() }
        val buffer = inputBuffers.getOrPut(signature to name) {
            newBuffer(interpreter.getInputTensorFromSignature(name, signature).numBytes())
        }
        buffer.rewind()
        when (value) {
            is FloatArray -> buffer.asFloatBuffer().put(value)
            is IntArray -> buffer.asIntBuffer().put(value)
            is ByteArray -> buffer.put(value).rewind()
            else -> error("Input $name is ${value.javaClass}")
        }
        return buffer
    }

    private fun asArray(signature: String, name: String, buffer: ByteBuffer): Any {
        buffer.rewind()
        if (name.startsWith("features")) return buffer
        val size = buffer.limit() / 4
        val tensor = interpreter.getOutputTensorFromSignature(name, signature)
        return when (val type = tensor.dataType()) {
            DataType.FLOAT32 -> FloatArray(size).also { buffer.asFloatBuffer().get(it) }
            DataType.INT32 -> IntArray(size).also { buffer.asIntBuffer().get(it) }
            else -> error("Output $name has the type $type")
        }
    }
}
