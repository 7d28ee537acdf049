// Test lines in the Test Anything Protocol.
export function report() {
  let count = 0;
  let failed = 0;
  return {
    check(ok, name, detail) {
      count += 1;
      failed += ok ? 0 : 1;
      console.log(`${ok ? "ok" : "not ok"} ${count} - ${name}`);
      if (!ok && detail !== undefined) {
        const text = detail instanceof Error ? detail.stack : JSON.stringify(detail);
        console.log("# " + text.replaceAll("\n", "\n# "));
      }
    },
    end() {
      console.log(`1..${count}`);
      process.exitCode = failed ? 1 : 0;
    },
  };
}

// What a call throws, or null.
export async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  return null;
}
