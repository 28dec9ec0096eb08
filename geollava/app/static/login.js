// Sends the password; the answer sets the cookie.
document.querySelector("#login").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const password = document.querySelector("#password").value;
  const reply = await fetch("/login", { method: "POST", body: password });
  if (reply.ok) location.replace("/");
  else document.querySelector("#error").textContent = (await reply.json()).error;
});
