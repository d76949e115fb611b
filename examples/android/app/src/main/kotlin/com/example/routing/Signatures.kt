package com.example.routing

/**
 * The signatures of an opened file.
 *
 * Arrays of floats, ints and bytes go in and come out, flat. Outputs with names that start with
 * "features" are only handed from one signature to the next; they are valid until the signature
 * that made them runs again.
 */
interface Signatures : AutoCloseable {
    /** Runs a signature and returns its outputs by name. */
    fun run(signature: String, inputs: Map<String, Any>): Map<String, Any>
}

fun floats(results: Map<String, Any>, name: String) = results.getValue(name) as FloatArray

fun ints(results: Map<String, Any>, name: String) = results.getValue(name) as IntArray
